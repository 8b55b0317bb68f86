package local

import (
	"context"
	"net"
	"slices"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// The state directory is a lifecycle.State with, besides,
//
//	sandboxes/<id>/agent.sock   where its agent listens
//	sandboxes/<id>/agent.log    what its agent had to say
//	sandboxes/<id>/fs/          its files: overlay upper and work directories
//	sandboxes/<id>/disk.img     instead, where it has a disk limit
//	layers/<id>/                fs/upper/, and refs/ with a file for each sandbox or snapshot that has it
//	snapshots/, snapshot-names/ see lifecycle.Snapshots
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
	// Layers are directories below layers/ that other sandboxes and snapshots may
	// have as well, the lowest first: what its files were when it, or what it is a
	// fork of, was forked. They are above Lowers.
	Layers []string `json:"layers,omitempty"`
	// Pending is a layer that is being made of its files.
	Pending string `json:"pending,omitempty"`
	// Flat is what is made of Layers when they become many.
	Flat flat `json:"flat,omitzero"`
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
	return &proc{p, d.e.cgroups.group(r.ID)}, nil
}

// Clear kills through the cgroup a process that had not been written down yet.
func (d driver) Clear(r *record) error {
	g := d.e.cgroups.group(r.ID)
	g.kill()
	_ = g.thaw() // what is frozen does not die in hierarchies of version 1
	r.Own.ProcessID = lifecycle.ProcessID{}
	return g.remove()
}

func (d driver) Release(ctx context.Context, r *record) error {
	for _, l := range slices.Concat(r.Own.Layers, []string{r.Own.Pending}, r.Own.Flat.all()) {
		if err := d.e.dropLayer(l, r.ID); err != nil {
			return err
		}
	}
	if r.Archive != "" {
		if err := (packing{d}).Forget(ctx, r); err != nil {
			return err
		}
	}
	failpoint.Kill("local/delete/layers-dropped")
	return d.e.images.Release(ctx, r.ID)
}

func (d driver) CanFreeze() error { return d.e.cgroups.canFreeze() }

func (d driver) Freeze(ctx context.Context, r *record) error {
	return d.e.cgroups.group(r.ID).freeze(ctx)
}

func (d driver) Thaw(r *record) error { return d.e.cgroups.group(r.ID).thaw() }

// Recover finishes or takes back what a dead process was at.
func (d driver) Recover(r *record) error {
	switch r.State {
	case daytona.StateForking, daytona.StateSnapshotting:
		return d.e.recoverLayer(r)
	case daytona.StateArchiving:
		d.e.RecoverArchiving(context.Background(), packing{d}, r)
	case daytona.StateRestoring:
		return packing{d}.Discard(context.Background(), r)
	case daytona.StateResizing:
		// What cannot be put in force now is at the next start.
		if err := d.e.applyResources(context.Background(), r, r.Resources); err != nil {
			d.e.log.Warn("limits that were being changed may not be in force", "sandbox", r.ID, "err", err)
		}
	}
	return nil
}

func (d driver) RemoveTree(dir string) error { return d.e.removeTree(dir) }

func (d driver) Reap(exists func(id string) bool) {
	for _, id := range d.e.cgroups.ids() {
		if !lifecycle.ValidID(id) || exists(id) {
			continue
		}
		g := d.e.cgroups.group(id)
		g.kill()
		_ = g.thaw()
		if err := g.remove(); err != nil {
			d.e.log.Warn("cgroup could not be removed", "sandbox", id, "err", err)
		}
	}
}

func (d driver) Dial(ctx context.Context, id string) (net.Conn, error) {
	return d.e.dialSocket(ctx, id)
}
