package local

import (
	"context"
	"net"

	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// The state directory is a lifecycle.State with, besides,
//
//	sandboxes/<id>/agent.sock   where its agent listens
//	sandboxes/<id>/agent.log    what its agent had to say
//	sandboxes/<id>/fs/          its files: overlay upper and work directories
//	sandboxes/<id>/disk.img     instead, where it has a disk limit
//	volumes/<id>/               volume.json and data/, or disk.img with a quota
//	images/                     the image store
//	host/                       the skeleton of the "host" image
//	empty/                      the only layer of an image without layers
//
// Everything that a sandbox has on the machine can be found from its id (the
// cgroups), or dies with its processes (namespaces, mounts, network devices,
// loop devices).

// record is what is kept of a sandbox.
type record = lifecycle.Record[own]

// own is what this engine keeps of a sandbox.
type own struct {
	// PID 1 of the sandbox as the host sees it.
	lifecycle.ProcessID
	// UIDBase is the host uid (and gid) of the sandbox's root.
	UIDBase int `json:"uidBase"`
	// HasDisk says that its files are in disk.img.
	HasDisk bool `json:"hasDisk,omitempty"`
	// Digest of the image, which is held in the image store under the id, its
	// layers (the lowest first) and configuration.
	Digest string       `json:"digest,omitempty"`
	Lowers []string     `json:"lowers,omitempty"`
	Config image.Config `json:"config"`
	// AddUser says that the default user is to be added to the image's.
	AddUser bool `json:"addUser,omitempty"`
	// Offline says that it was started without a network interface.
	Offline bool `json:"offline,omitempty"`
}

// driver is the engine as package lifecycle sees it.
type driver struct{ e *engine }

func (d driver) Boot(ctx context.Context, op string, r *record) (lifecycle.Proc[own], error) {
	p, err := d.e.bootUp(ctx, op, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (d driver) Running(r *record) bool { return r.Own.Running() }

func (d driver) Adopt(r *record) (lifecycle.Proc[own], error) {
	p, err := r.Own.Follow()
	if err != nil {
		return nil, err
	}
	return &proc{p}, nil
}

// Clear kills through the cgroup a process that had not been written down yet.
func (d driver) Clear(r *record) error {
	g := d.e.cgroups.group(r.ID)
	g.kill()
	r.Own.ProcessID = lifecycle.ProcessID{}
	return g.remove()
}

func (d driver) Release(ctx context.Context, r *record) error {
	return d.e.images.Release(ctx, r.ID)
}

func (d driver) RemoveTree(dir string) error { return d.e.removeTree(dir) }

func (d driver) Reap(exists func(id string) bool) {
	for _, id := range d.e.cgroups.ids() {
		if !lifecycle.ValidID(id) || exists(id) {
			continue
		}
		g := d.e.cgroups.group(id)
		g.kill()
		if err := g.remove(); err != nil {
			d.e.log.Warn("cgroup could not be removed", "sandbox", id, "err", err)
		}
	}
}

func (d driver) Dial(ctx context.Context, id string) (net.Conn, error) {
	return d.e.dialSocket(ctx, id)
}
