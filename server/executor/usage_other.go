//go:build !linux

package executor

import (
	"runtime"

	"github.com/daytona-go/daytona/internal/wire"
)

// usage knows the number of CPUs only: what a machine has, Config.Capacity must
// say.
type usage struct{}

func (u *usage) sample(string) wire.RunnerHealthMetrics {
	return wire.RunnerHealthMetrics{CPU: float64(runtime.NumCPU())}
}
