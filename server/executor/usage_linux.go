package executor

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

// usage samples the machine.
type usage struct {
	mu         sync.Mutex
	busy, all  float64 // of the CPU, at the last sample
	cpuPercent float64
}

// sample returns what the machine has and uses; what can't be found out is 0.
func (u *usage) sample(dir string) wire.RunnerHealthMetrics {
	m := wire.RunnerHealthMetrics{CPU: float64(runtime.NumCPU())}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(data), " ")
		m.CurrentCPULoadAverage, _ = strconv.ParseFloat(first, 64)
	}
	m.CurrentCPUUsagePercentage = u.cpu()
	if total, available := memory(); total > 0 {
		m.MemoryGiB, m.CurrentMemoryUsagePercentage = total/daytona.GiB, 100*(1-available/total)
	}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Blocks > 0 {
		m.DiskGiB = float64(st.Blocks) * float64(st.Bsize) / daytona.GiB
		m.CurrentDiskUsagePercentage = 100 * (1 - float64(st.Bavail)/float64(st.Blocks))
	}
	return m
}

// cpu is how busy the CPU has been since the last time, in percent.
func (u *usage) cpu() float64 {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	var all, idle float64
	for i, f := range strings.Fields(string(line)) {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 8 { // guests are counted in user already
			continue
		}
		all += n
		if i == 4 || i == 5 { // idle and waiting for a disk
			idle += n
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if d := all - u.all; d > 0 && u.all > 0 {
		u.cpuPercent = min(max(100*(all-idle-u.busy)/d, 0), 100)
	}
	u.busy, u.all = all-idle, all
	return u.cpuPercent
}

// memory is what the machine has and what is left, in bytes.
func memory() (total, available float64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "MemTotal:":
			total = kib * 1024
		case "MemAvailable:":
			available = kib * 1024
		}
	}
	return total, available
}
