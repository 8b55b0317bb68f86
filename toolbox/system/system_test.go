package system_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox/system"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestHere measures this machine.
func TestHere(t *testing.T) {
	mux := http.NewServeMux()
	s := system.New("", nil)
	s.Register(mux)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/system/metrics", nil))
	var m wire.SystemMetrics
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil || w.Code != 200 {
		t.Fatal(w.Code, err)
	}
	if m.CPUCount < 1 || m.CPUUsedPct != 0 || m.MemTotal < 1<<20 || m.MemUsed <= 0 || m.MemUsed > m.MemTotal || m.DiskTotal <= 0 ||
		m.DiskUsed+m.DiskFree != m.DiskTotal || m.TimestampUnix < 1e9 {
		t.Errorf("%+v", m)
	}
	if _, err := time.Parse(time.RFC3339Nano, m.Timestamp); err != nil {
		t.Error(err)
	}
	// Work for the processor shows in the next sample.
	now := time.Now()
	for time.Since(now) < 1100*time.Millisecond {
		for range 1000 {
		}
	}
	if pct := s.Metrics(time.Now()).CPUUsedPct; pct <= 0 || pct > 110 {
		t.Errorf("processor use %v %%", pct)
	}
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCgroups(t *testing.T) {
	const meminfo = "MemTotal:       8000 kB\nMemFree:        1000 kB\nBuffers:         500 kB\nCached:         1500 kB\n"
	for name, c := range map[string]struct {
		files, later        map[string]string
		cpus                int
		pct                 float64
		total, used, cached int64
	}{
		"version 2": {
			files: map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/cpu.max": "50000 100000\n", "sys/fs/cgroup/cpu.stat": "usage_usec 1000000\nuser_usec 1\n",
				"sys/fs/cgroup/memory.current": "3000000\n", "sys/fs/cgroup/memory.max": "4194304\n", "sys/fs/cgroup/memory.stat": "anon 5\nfile 1000000\n"},
			later: map[string]string{"sys/fs/cgroup/cpu.stat": "usage_usec 1500000\n"},
			cpus:  1, pct: 50, total: 4194304, used: 2000000, cached: 1000000,
		},
		"version 2, no limit": {
			files: map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.current": "3000000\n", "sys/fs/cgroup/memory.max": "max\n"},
			total: 8000 << 10, used: 3000000,
		},
		"version 1": {
			files: map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
				"sys/fs/cgroup/cpuacct/cpuacct.usage": "1000000000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "3000000\n",
				"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/memory/memory.stat": "total_cache 1000000\n"},
			later: map[string]string{"sys/fs/cgroup/cpuacct/cpuacct.usage": "1500000000\n"},
			cpus:  1, pct: 25, total: 8000 << 10, used: 2000000, cached: 1000000,
		},
		"none": {
			files: map[string]string{"proc/meminfo": meminfo},
			total: 8000 << 10, used: 5000 << 10, cached: 2000 << 10,
		},
		"hostile": {
			files: map[string]string{"proc/meminfo": "MemTotal:\nx\n", "sys/fs/cgroup/cpu.max": "0 0", "sys/fs/cgroup/memory.current": "NaN"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, c.files)
			s := system.New(root, nil)
			now := time.Now()
			m := s.Metrics(now)
			if c.cpus != 0 && m.CPUCount != c.cpus || m.CPUUsedPct != 0 || m.MemTotal != c.total || m.MemUsed != c.used || m.MemCache != c.cached {
				t.Errorf("%+v", m)
			}
			write(t, root, c.later)
			if pct := s.Metrics(now.Add(time.Second / 2)).CPUUsedPct; pct != 0 {
				t.Errorf("a window of half a second was taken: %v %%", pct)
			}
			if pct := s.Metrics(now.Add(2 * time.Second)).CPUUsedPct; pct != c.pct {
				t.Errorf("processor use %v %%, want %v", pct, c.pct)
			}
		})
	}
}
