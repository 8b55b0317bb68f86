package local_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/local"
)

// BenchmarkLocal prints times and ratios; see backendtest.RunBenchmarks.
func BenchmarkLocal(b *testing.B) {
	var mu sync.Mutex
	states := map[daytona.Backend]string{}
	h := &backendtest.Harness{
		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
			warm := 0
			if strings.Contains(state, "Warm") {
				warm = 2
			}
			be, err := local.New(ctx, &local.Options{Dir: state, Warm: warm})
			mu.Lock()
			defer mu.Unlock()
			states[be] = state
			return be, err
		},
		Warm: func(ctx context.Context, be daytona.Backend, spec daytona.Spec) error {
			mu.Lock()
			state := states[be]
			mu.Unlock()
			for ctx.Err() == nil {
				if countWarm(state) >= 2 {
					return nil
				}
				time.Sleep(time.Millisecond)
			}
			return ctx.Err()
		},
		MemoryOf: func(ctx context.Context, be daytona.Backend, id string) (int64, error) { return memoryOf(id) },
	}
	backendtest.RunBenchmarks(b, h)
}

// countWarm counts the sandboxes that wait in the pool.
func countWarm(state string) int {
	n := 0
	records, _ := filepath.Glob(filepath.Join(state, "sandboxes", "*", "record.json"))
	for _, r := range records {
		var rec struct{ Phase string }
		if data, err := os.ReadFile(r); err == nil && json.Unmarshal(data, &rec) == nil && rec.Phase == "warm" {
			n++
		}
	}
	return n
}

// memoryOf is what a sandbox's processes take, shared pages counted in part
// (PSS, proc(5)), and what the kernel keeps for them if it says so.
func memoryOf(id string) (int64, error) {
	groups, err := filepath.Glob("/sys/fs/cgroup/unified/daytona/*-" + id)
	if v2, _ := filepath.Glob("/sys/fs/cgroup/daytona/*-" + id); len(v2) > 0 {
		groups = v2
	}
	if err != nil || len(groups) == 0 {
		return 0, fmt.Errorf("sandbox %s has no cgroup: %v", id, err)
	}
	procs, err := os.ReadFile(filepath.Join(groups[0], "box", "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	var total int64
	for pid := range strings.FieldsSeq(string(procs)) {
		rollup, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			return 0, err
		}
		_, pss, _ := strings.Cut(string(rollup), "Pss:")
		kib, err := strconv.ParseInt(strings.Fields(pss)[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += kib << 10
	}
	for _, file := range []string{"/sys/fs/cgroup/memory/daytona/" + filepath.Base(groups[0]) + "/memory.kmem.usage_in_bytes"} {
		if data, err := os.ReadFile(file); err == nil {
			n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
			total += n
		}
	}
	return total, nil
}
