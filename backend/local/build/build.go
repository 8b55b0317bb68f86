// Package build makes the embedded engine build images from Dockerfiles, by
// linking package image/build into a program that imports it:
//
//	import _ "github.com/daytona-go/daytona/backend/local/build"
//
// It adds BuildKit to the program, which is why package local does not import it.
package build

import (
	"context"

	"github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/image/build"
)

func init() { local.Register(open) }

func open(h local.BuilderHost) (local.Builder, error) {
	return build.Open(h.BuildDir(), build.Options{Runner: runner{h}, Store: h.ImageStore()})
}

// runner has steps run by the engine.
type runner struct{ local.BuilderHost }

func (r runner) RunStep(ctx context.Context, s build.Step) error {
	step := local.Step{
		Root: local.Layers(s.Root), Args: s.Args, Env: s.Env, Dir: s.Dir, UID: s.UID, GID: s.GID, Groups: s.Groups,
		Hostname: s.Hostname, Hosts: s.Hosts, Network: s.Network, Resources: s.Resources, Stdout: s.Stdout, Stderr: s.Stderr,
	}
	for _, m := range s.Mounts {
		step.Mounts = append(step.Mounts, local.StepMount{Target: m.Target, ReadOnly: m.ReadOnly, Tmpfs: m.Tmpfs, Layers: local.Layers(m.Layers), Dir: m.Dir, Sub: m.Sub})
	}
	return r.BuilderHost.RunStep(ctx, step)
}
