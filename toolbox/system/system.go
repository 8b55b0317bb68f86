// Package system is the part of the agent's HTTP API about the sandbox as a
// machine: processor, memory and disk. It measures only when it is asked.
package system

import (
	"bufio"
	"bytes"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Service answers the system routes.
type Service struct {
	root   string
	logger *slog.Logger

	mu      sync.Mutex
	at      time.Time     // of the last sample; zero before the first
	used    time.Duration // processor time until then
	percent float64       // between the last two samples
}

// minWindow between two samples; more frequent questions get the last answer.
const minWindow = time.Second

// New returns a Service. root is where /proc and /sys/fs/cgroup are found and
// the disk whose space is told; it defaults to "/". logger may be nil.
func New(root string, logger *slog.Logger) *Service {
	if root == "" {
		root = "/"
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Service{root: root, logger: logger}
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /system/metrics", func(w http.ResponseWriter, r *http.Request) {
		wire.WriteJSON(w, http.StatusOK, s.Metrics(time.Now()))
	})
}

// Metrics measures now. The processor use is the average since the last time
// that it was called at least a second ago, in percent of the limit; 0 the
// first time. Figures are those of the sandbox's cgroup where it can be seen
// (version 2, then 1), else those of the machine; what cannot be read is 0.
func (s *Service) Metrics(now time.Time) wire.SystemMetrics {
	m := wire.SystemMetrics{Timestamp: now.UTC().Format(time.RFC3339Nano), TimestampUnix: now.Unix()}
	cores := float64(runtime.NumCPU())
	if limit := s.cpuLimit(); limit > 0 {
		cores = min(cores, limit)
	}
	m.CPUCount = int(math.Ceil(cores))
	m.CPUUsedPct = s.sample(now, cores)
	m.MemTotal, m.MemUsed, m.MemCache = s.memory()
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		s.logger.Warn("disk space is unknown", "error", err)
		return m
	}
	// As df(1) counts: what is reserved for root is neither free nor used.
	size := st.Bsize
	if st.Frsize > 0 {
		size = st.Frsize
	}
	m.DiskFree = int64(st.Bavail) * size
	m.DiskUsed = int64(st.Blocks-st.Bfree) * size
	m.DiskTotal = m.DiskUsed + m.DiskFree
	return m
}

func (s *Service) sample(now time.Time, cores float64) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.at.IsZero() && now.Sub(s.at) < minWindow {
		return s.percent
	}
	used := s.cpuTime()
	if window := now.Sub(s.at); !s.at.IsZero() && used >= s.used {
		s.percent = 100 * float64(used-s.used) / (float64(window) * cores)
	}
	s.at, s.used = now, used
	return s.percent
}

// read returns a file without its final newline, "" if there is none.
func (s *Service) read(name string) string {
	b, err := os.ReadFile(filepath.Join(s.root, name))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(b, []byte("\n")))
}

func (s *Service) number(name string) (int64, bool) {
	n, err := strconv.ParseInt(s.read(name), 10, 64)
	return n, err == nil
}

// value finds "key value", or "key: value", in the lines of a file.
func value(file, key string) (int64, bool) {
	for scanner := bufio.NewScanner(strings.NewReader(file)); scanner.Scan(); {
		f := strings.Fields(scanner.Text())
		if len(f) >= 2 && strings.TrimSuffix(f[0], ":") == key {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// cpuLimit is in cores, 0 if there is none.
func (s *Service) cpuLimit() float64 {
	quota, period, ok := strings.Cut(s.read("sys/fs/cgroup/cpu.max"), " ")
	if !ok {
		quota, period = s.read("sys/fs/cgroup/cpu/cpu.cfs_quota_us"), s.read("sys/fs/cgroup/cpu/cpu.cfs_period_us")
	}
	q, err1 := strconv.ParseFloat(quota, 64) // "max" is no number, and -1 no limit
	p, err2 := strconv.ParseFloat(period, 64)
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 {
		return 0
	}
	return q / p
}

func (s *Service) cpuTime() time.Duration {
	if usec, ok := value(s.read("sys/fs/cgroup/cpu.stat"), "usage_usec"); ok {
		return time.Duration(usec) * time.Microsecond
	}
	for _, name := range []string{"sys/fs/cgroup/cpuacct/cpuacct.usage", "sys/fs/cgroup/cpu,cpuacct/cpuacct.usage"} {
		if ns, ok := s.number(name); ok {
			return time.Duration(ns)
		}
	}
	// proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal in
	// ticks, of which Linux tells programs 100 a second.
	line, _, _ := strings.Cut(s.read("proc/stat"), "\n")
	var ticks int64
	for i, f := range strings.Fields(line) {
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i >= 1 && i <= 7 && i != 4 && i != 5 {
			ticks += n
		}
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// memory returns total, used without page cache, and page cache, in bytes.
func (s *Service) memory() (total, used, cache int64) {
	info := s.read("proc/meminfo")
	kib := func(key string) int64 { n, _ := value(info, key); return n << 10 }
	total = kib("MemTotal")
	current, ok := s.number("sys/fs/cgroup/memory.current")
	limit, _ := s.number("sys/fs/cgroup/memory.max")
	cache, _ = value(s.read("sys/fs/cgroup/memory.stat"), "file")
	if !ok {
		current, ok = s.number("sys/fs/cgroup/memory/memory.usage_in_bytes")
		limit, _ = s.number("sys/fs/cgroup/memory/memory.limit_in_bytes")
		cache, _ = value(s.read("sys/fs/cgroup/memory/memory.stat"), "total_cache")
	}
	if !ok {
		cache = kib("Cached") + kib("Buffers")
		return total, max(0, total-kib("MemFree")-cache), cache
	}
	if limit > 0 && (total == 0 || limit < total) {
		total = limit
	}
	return total, max(0, current-cache), cache
}
