package local

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/tree"
)

// maxOwnLayers bounds the layers that forks and snapshots add to those of an
// image. More of them are merged into one, once: each is another place where the
// kernel looks for a name, and it stacks no more than 500.
const maxOwnLayers = 32

func (e *engine) layerLimit() int { return cmp.Or(e.ownLayers, maxOwnLayers) }

// flat is one layer in place of many. A sandbox that runs keeps the many, which
// its overlay is mounted on, until its files are next kept while it is stopped.
type flat struct {
	// Making is a layer that is not complete, or that nobody needs.
	Making string `json:"making,omitempty"`
	// Layer has what all of Layers have.
	Layer string `json:"layer,omitempty"`
	// Old are layers that another stands for now, to be let go.
	Old []string `json:"old,omitempty"`
}

func (f flat) all() []string { return append([]string{f.Making, f.Layer}, f.Old...) }

// flatten gives the layers of a sandbox, as one layer if there are more than
// limit. The sandbox has that one until it has no use for it.
func (e *engine) flatten(ctx context.Context, r *record, limit int) ([]string, error) {
	if len(r.Own.Layers) <= limit {
		return slices.Clone(r.Own.Layers), nil
	}
	if r.Own.Flat.Layer == "" {
		if err := e.mergeLayers(ctx, r); err != nil {
			return nil, err
		}
	}
	return []string{r.Own.Flat.Layer}, nil
}

// shorten is flatten for a sandbox that is stopped, and whose own layers those
// are from then on.
func (e *engine) shorten(ctx context.Context, r *record) ([]string, error) {
	layers, err := e.flatten(ctx, r, e.layerLimit())
	if err != nil || len(layers) == len(r.Own.Layers) {
		return layers, err
	}
	r.Own.Layers = slices.Clone(e.swapFlat(r))
	if err := e.Save(r, true); err != nil {
		return nil, err
	}
	failpoint.Kill("local/flatten/used")
	if err := e.dropFlat(r); err != nil {
		e.log.Warn("layers that were merged could not be let go; it will be tried again", "sandbox", r.ID, "err", err)
	}
	return layers, nil
}

// swapFlat gives the layers that a stopped sandbox is to have: the flat one in
// place of those that it is made of, if there is one.
func (e *engine) swapFlat(r *record) []string {
	f := &r.Own.Flat
	if f.Layer == "" {
		return r.Own.Layers
	}
	layers := []string{f.Layer}
	f.Old = append(slices.Clone(f.Old), r.Own.Layers...)
	f.Layer = ""
	return layers
}

// mergeLayers makes the flat layer.
func (e *engine) mergeLayers(ctx context.Context, r *record) error {
	id := lifecycle.NewID()
	r.Own.Flat.Making = id
	if err := e.Save(r, true); err != nil {
		return err
	}
	err := e.newLayer(id, r.ID)
	if err == nil {
		failpoint.Kill("local/flatten/begun")
		err = e.mergeInto(ctx, r, id)
	}
	if err != nil {
		if derr := e.dropFlat(r); derr != nil {
			e.log.Warn("layer could not be removed; it will be tried again", "sandbox", r.ID, "layer", id, "err", derr)
		}
		return err
	}
	failpoint.Kill("local/flatten/made")
	r.Own.Flat.Making, r.Own.Flat.Layer = "", id
	return e.Save(r, true)
}

func (e *engine) mergeInto(ctx context.Context, r *record, id string) error {
	to := filepath.Join(e.layer(id), "fs")
	for _, d := range []string{to, filepath.Join(to, "upper"), filepath.Join(to, "work")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	dst, work := filepath.Join(to, "upper"), filepath.Join(to, "work")
	var srcs []string
	for _, l := range r.Own.Layers {
		srcs = append(srcs, e.layerFiles(l))
	}
	if !e.root {
		// Files of the sandbox's users are for its root alone to read.
		return e.runMapped(ctx, e.ids(r), slices.Concat([]string{"merge", dst, work, strconv.Itoa(len(r.Own.Lowers))}, r.Own.Lowers, srcs)...)
	}
	_, err := tree.Merge(ctx, dst, work, r.Own.Lowers, srcs)
	return err
}

// dropFlat lets go of what is not complete and of what is no longer needed. The
// record is to be saved afterwards; what it then still names is gone, which does
// no harm.
func (e *engine) dropFlat(r *record) error {
	f := &r.Own.Flat
	if f.Making != "" {
		if err := e.dropLayer(f.Making, r.ID); err != nil {
			return err
		}
		f.Making = ""
	}
	for _, l := range f.Old {
		if err := e.dropLayer(l, r.ID); err != nil {
			return err
		}
	}
	f.Old = nil
	return nil
}
