//go:build linux

package docker

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona/internal/lifecycle"
)

// agentLabel is that of the volumes that have the agent's binary, and says which
// one.
const agentLabel = "io.github.daytona-go.agent"

// agentMount mounts a volume with the agent. The image's own files have no part
// in it.
func agentMount(volume, hash string, readOnly bool) mount.Mount {
	return mount.Mount{Type: mount.TypeVolume, Source: volume, Target: agentDir, ReadOnly: readOnly,
		VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: map[string]string{agentLabel: hash}}}
}

func (b *backend) agentHash() string { return filepath.Base(b.agent) }

// agentVolume is a volume that should have the agent; see hasAgent.
func (b *backend) agentVolume(ctx context.Context, image string) (string, error) {
	b.volume.Lock()
	defer b.volume.Unlock()
	if b.volume.name != "" {
		return b.volume.name, nil
	}
	if !b.volume.own { // else those of others have proved to be no good
		all, err := b.api.VolumeList(ctx, client.VolumeListOptions{Filters: make(client.Filters).Add("label", agentLabel+"="+b.agentHash())})
		if err != nil {
			return "", err
		}
		for _, v := range all.Items {
			b.volume.name = v.Name
			return v.Name, nil
		}
	}
	name, err := b.fillVolume(ctx, image)
	if err != nil {
		return "", fmt.Errorf("give the engine the agent: %w", err)
	}
	b.volume.name = name
	b.removeAgents(ctx)
	return name, nil
}

// forgetVolume has the next agentVolume fill one of its own: somebody else has
// removed this one, or was killed while filling it.
func (b *backend) forgetVolume(name string) {
	b.volume.Lock()
	defer b.volume.Unlock()
	if b.volume.name == name {
		b.volume.name, b.volume.own = "", true
	}
}

// hasAgent reports whether the agent is whole in a container. A volume is never
// filled a second time, and not removed while a container has it, so that it
// stays so.
func (b *backend) hasAgent(ctx context.Context, name string) (bool, error) {
	info, err := os.Stat(b.agent)
	if err != nil {
		return false, err
	}
	st, err := b.api.ContainerStatPath(ctx, name, client.ContainerStatPathOptions{Path: agentFile})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && st.Stat.Mode.IsRegular() && st.Stat.Size == info.Size(), err
}

// fillVolume makes a new volume and copies the agent into it, by way of a
// container that is never started.
func (b *backend) fillVolume(ctx context.Context, image string) (name string, err error) {
	id := lifecycle.NewID()
	name = "daytona-agent-" + id
	// It bears the labels of a sandbox that does not exist, so that it is reaped
	// if this process is killed.
	filler := b.containerName(id)
	config := &container.Config{Image: image, Entrypoint: []string{agentFile}, Labels: b.labels(id)}
	host := &container.HostConfig{NetworkMode: "none", Mounts: []mount.Mount{agentMount(name, b.agentHash(), false)}}
	uncut, cancel := uncut(ctx)
	defer cancel()
	defer func() {
		err = errors.Join(err, b.removeContainer(uncut, filler))
		if err != nil {
			_, _ = b.api.VolumeRemove(uncut, name, client.VolumeRemoveOptions{})
		}
	}()
	if _, err := b.api.ContainerCreate(uncut, client.ContainerCreateOptions{Config: config, HostConfig: host, Name: filler}); err != nil {
		return "", err
	}
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(writeAgent(w, b.agent)) }()
	_, err = b.api.CopyToContainer(ctx, filler, client.CopyToContainerOptions{DestinationPath: agentDir, Content: r})
	return name, err
}

// writeAgent writes the archive that a volume is filled with.
func writeAgent(w io.Writer, agent string) error {
	f, err := os.Open(agent)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Name: path.Base(agentFile), Mode: 0o555, Size: info.Size(), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := io.Copy(t, f); err != nil {
		return err
	}
	return t.Close()
}

// oldAgent is the age from which on the volume of another agent is not wanted any
// more: programs of different versions may share an engine.
const oldAgent = 7 * 24 * time.Hour

// removeAgents removes the old volumes of other agents that no container has. One
// that somebody was about to use, they fill again.
func (b *backend) removeAgents(ctx context.Context) {
	all, err := b.api.VolumeList(ctx, client.VolumeListOptions{Filters: make(client.Filters).Add("label", agentLabel).Add("dangling", "true")})
	if err != nil {
		b.log.Warn("old agents could not be looked for", "err", err)
		return
	}
	for _, v := range all.Items {
		made, err := time.Parse(time.RFC3339, v.CreatedAt)
		if err != nil || time.Since(made) < oldAgent || v.Labels[agentLabel] == b.agentHash() {
			continue
		}
		if _, err := b.api.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{}); err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			b.log.Warn("an old agent could not be removed", "volume", v.Name, "err", err)
		}
	}
}
