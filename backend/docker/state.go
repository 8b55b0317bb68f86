//go:build linux

package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/failpoint"
	"github.com/daytona-go/daytona/internal/lifecycle"
)

// filesName is what images are called that have the files of a sandbox, or are
// what a snapshot was made from. The tag is that of the state directory and an id.
const filesName = "daytona.local/files"

func (b *backend) newFiles() string { return filesName + ":" + b.tag + "-" + lifecycle.NewID() }

// CanFreeze implements lifecycle.Freezer.
func (d driver) CanFreeze() error { return nil }

// Freeze implements lifecycle.Freezer.
func (d driver) Freeze(ctx context.Context, r *record) error {
	uncut, cancel := uncut(ctx)
	defer cancel()
	for {
		_, err := d.b.api.ContainerPause(uncut, d.b.containerName(r.ID), client.ContainerPauseOptions{})
		if err == nil {
			return nil
		}
		if state, serr := d.b.state(uncut, r.ID); serr == nil && state.Paused {
			return nil
		}
		// With cgroups v1 runc gives up, and thaws what it has frozen, when
		// processes keep starting others or the machine is busy.
		if !strings.Contains(err.Error(), "unable to freeze") {
			return d.b.explain(lifecycle.PauseOp, r.Name, err)
		}
		select {
		case <-ctx.Done():
			return d.b.explain(lifecycle.PauseOp, r.Name, ctx.Err())
		case <-uncut.Done():
			return d.b.explain(lifecycle.PauseOp, r.Name, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Thaw implements lifecycle.Freezer.
func (d driver) Thaw(r *record) error {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	_, err := d.b.api.ContainerUnpause(ctx, d.b.containerName(r.ID), client.ContainerUnpauseOptions{})
	if err != nil {
		if state, serr := d.b.state(ctx, r.ID); serr == nil && !state.Paused || errors.Is(serr, errNoContainer) {
			return nil
		}
	}
	return d.b.explain(lifecycle.ResumeOp, r.Name, err)
}

// Recover implements lifecycle.Recoverer.
func (d driver) Recover(r *record) error {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	switch r.State {
	case daytona.StateResizing:
		_, err := d.b.api.ContainerUpdate(ctx, d.b.containerName(r.ID), client.ContainerUpdateOptions{Resources: limitsOf(r.Resources)})
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return d.b.explain(lifecycle.ResizeOp, r.Name, err)
	case daytona.StateArchiving:
		d.b.RecoverArchiving(ctx, d, r)
	case daytona.StateRestoring:
		return d.Discard(ctx, r)
	}
	// The engine goes on with a commit whose caller has died, and has the
	// container paused until the image is there.
	for {
		state, err := d.b.state(ctx, r.ID)
		if err != nil || !state.Paused {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := d.dropPending(ctx, r); err != nil {
		return err
	}
	go d.b.collectLate()
	return nil
}

// collectLate removes what a commit of a stopped container, which nothing tells
// of, makes after its caller has died. What it misses, the next Open removes.
func (b *backend) collectLate() {
	for range 30 {
		time.Sleep(2 * time.Second)
		if b.Closed() {
			return
		}
		if err := b.collectFiles(context.Background()); err != nil {
			b.log.Warn("images that are gone could not be removed", "err", err)
			return
		}
	}
}

// dropPending gives up an image that was to be of use to others than this
// sandbox: those who use it have it in their own records.
func (d driver) dropPending(ctx context.Context, r *record) error {
	if r.Own.Pending == "" {
		return nil
	}
	r.Own.Pending = ""
	if err := d.b.Save(r, true); err != nil {
		return err
	}
	return d.b.collectFiles(ctx)
}

// commit makes an image of the present files of a sandbox. The engine pauses the
// container for as long as that takes.
func (b *backend) commit(ctx context.Context, r *record, ref string) (id string, err error) {
	_, err = b.state(ctx, r.ID)
	if errors.Is(err, errNoContainer) {
		// It was restored and not started since: its files are those of its image.
		_, err = b.api.ImageTag(ctx, client.ImageTagOptions{Source: r.Own.Image, Target: ref})
		return r.Own.Image, err
	}
	if err != nil {
		return "", err
	}
	for range commitTries {
		id, moment, err := b.commitOnce(ctx, r, ref)
		if err != nil || moment {
			return id, err
		}
		if _, err := b.api.ImageRemove(ctx, ref, client.ImageRemoveOptions{PruneChildren: true}); err != nil {
			return "", err
		}
	}
	return "", &daytona.Error{Kind: daytona.KindUnavailable, Op: "copy files", Subject: r.ID,
		Message: "the engine could not freeze the sandbox, whose processes keep starting others, to copy its files as they are at one moment; stop it first, or try again"}
}

// commitTries bounds how often a commit is done that is not of one moment.
const commitTries = 20

// commitOnce also tells whether the image is of one moment: when a container that
// runs cannot be paused, Docker goes on without a word, and only the events tell.
func (b *backend) commitOnce(ctx context.Context, r *record, ref string) (id string, moment bool, err error) {
	state, err := b.state(ctx, r.ID)
	if err != nil {
		return "", false, err
	}
	moment = !state.Running || state.Paused
	watch, stop := context.WithCancel(ctx)
	defer stop()
	var events client.EventsResult
	if !moment {
		events = b.api.Events(watch, client.EventsListOptions{Filters: make(client.Filters).Add("container", b.containerName(r.ID))})
	}
	made, err := b.api.ContainerCommit(ctx, b.containerName(r.ID), client.ContainerCommitOptions{Reference: ref,
		// A container that somebody makes of it is not to be taken for a sandbox.
		Changes: []string{"LABEL " + sandboxLabel + "="}})
	if err == nil {
		err = failpoint.Fail("docker/commit/committed")
	}
	if err != nil || moment {
		return made.ID, moment, err
	}
	late := time.NewTimer(5 * time.Second)
	defer late.Stop()
	for {
		select {
		case e := <-events.Messages:
			switch e.Action {
			case "pause":
				return made.ID, true, nil
			case "commit":
				return made.ID, false, nil
			}
		case err := <-events.Err:
			b.log.Warn("nothing tells whether a sandbox was frozen while its files were copied", "sandbox", r.ID, "err", err)
			return made.ID, true, nil
		case <-late.C:
			b.log.Warn("nothing tells whether a sandbox was frozen while its files were copied", "sandbox", r.ID)
			return made.ID, true, nil
		}
	}
}

// collectFiles removes the images that no sandbox and no snapshot has any more.
// The record of whoever makes one names it before it is there, and the engine
// keeps those that a container is made of.
func (b *backend) collectFiles(ctx context.Context) error {
	ctx, cancel := uncut(ctx)
	defer cancel()
	list, err := b.api.ImageList(ctx, client.ImageListOptions{Filters: make(client.Filters).Add("reference", filesName)})
	if err != nil {
		return err
	}
	var there []string
	for _, i := range list.Items {
		for _, tag := range i.RepoTags {
			if strings.HasPrefix(tag, filesName+":"+b.tag+"-") {
				there = append(there, tag)
			}
		}
	}
	if len(there) == 0 {
		return nil
	}
	used := map[string]bool{}
	ids, err := b.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, err := b.Load(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if r.Phase != lifecycle.PhaseDeleting {
			used[r.Own.Files], used[r.Own.Pending] = true, true
		}
	}
	snapshots, err := os.ReadDir(b.Dir("snapshots"))
	if err != nil {
		return err
	}
	for _, e := range snapshots {
		var s lifecycle.SnapshotRecord[template]
		data, err := os.ReadFile(b.SnapshotDir(e.Name()) + "/record.json")
		if err != nil {
			continue // of one that does not name anything yet, or any more
		}
		if err := json.Unmarshal(data, &s); err == nil && s.Phase != lifecycle.PhaseDeleting {
			used[s.Own.Files] = true
		}
	}
	for _, tag := range there {
		if used[tag] {
			continue
		}
		_, err := b.api.ImageRemove(ctx, tag, client.ImageRemoveOptions{PruneChildren: true})
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			return err
		}
	}
	return nil
}

// Fork implements daytona.Forker: the parent is committed once, and the children
// are containers of that image.
func (b *backend) Fork(ctx context.Context, id string, opts daytona.ForkOptions) ([]daytona.Info, error) {
	var made, ref string
	capture := func(parent *record) (func(), error) {
		ref = b.newFiles()
		parent.Own.Pending = ref
		if err := b.Save(parent, true); err != nil {
			return nil, err
		}
		failpoint.Kill("docker/fork/intended")
		release := func() {
			clean, cancel := uncut(ctx)
			defer cancel()
			if err := (driver{b}).dropPending(clean, parent); err != nil {
				b.log.Warn("what a fork has left could not be removed; it will be tried again", "sandbox", parent.ID, "err", err)
			}
		}
		uncut, cancel := uncutFor(ctx, commitTimeout)
		defer cancel()
		var err error
		made, err = b.commit(uncut, parent, ref)
		return release, b.explain(lifecycle.ForkOp, parent.Name, err)
	}
	return b.ForkInto(ctx, id, opts, capture, func(ctx context.Context, parent, child *record) error {
		child.Own = own{Image: made, Files: ref, Config: parent.Own.Config, AddUser: parent.Own.AddUser, Volumes: slices.Clone(parent.Own.Volumes)}
		if err := b.Save(child, false); err != nil {
			return err
		}
		return failpoint.Fail("docker/fork/child-recorded")
	})
}

// template is what this backend keeps of a snapshot.
type template struct {
	Files  string       `json:"files"` // the image's name
	Image  string       `json:"image"` // its id
	Config image.Config `json:"config"`
	// Foreign says that the files are those of a sandbox, whose identity a new
	// one must not have.
	Foreign bool `json:"foreign,omitempty"`
}

// CreateSnapshot implements daytona.Snapshotter.
func (b *backend) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	const op = lifecycle.SnapshotOp
	if err := ctx.Err(); err != nil {
		return daytona.Snapshot{}, err
	}
	if err := spec.Validate(); err != nil {
		return daytona.Snapshot{}, err
	}
	if err := b.admitResources(op, spec.Resources); err != nil {
		return daytona.Snapshot{}, err
	}
	if spec.Image == daytona.ImageHost {
		return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "Image", Value: spec.Image, Message: "a container has an image of its own; name one"}
	}
	if spec.Sandbox == "" {
		return b.MakeSnapshot(ctx, spec, func(s *lifecycle.SnapshotRecord[template]) error {
			r := &record{Info: daytona.Info{Image: spec.Image}}
			if err := b.findImage(ctx, op, r, spec.OnProgress); err != nil {
				return err
			}
			s.Own = template{Files: b.newFiles(), Image: r.Own.Image, Config: r.Own.Config}
			if err := b.SaveSnapshot(s); err != nil {
				return err
			}
			uncut, cancel := uncut(ctx)
			defer cancel()
			if _, err := b.api.ImageTag(uncut, client.ImageTagOptions{Source: s.Own.Image, Target: s.Own.Files}); err != nil {
				return b.explain(op, spec.Name, err)
			}
			if err := failpoint.Fail("docker/snapshot-image/tagged"); err != nil {
				return err
			}
			return b.measure(uncut, s)
		})
	}
	if _, err := b.FindSnapshot(op, spec.Name); err == nil {
		return daytona.Snapshot{}, &daytona.Error{Kind: daytona.KindConflict, Op: op, Field: "Name", Value: spec.Name, Message: "another snapshot has this name"}
	}
	var sn daytona.Snapshot
	_, err := b.Change(ctx, op, spec.Sandbox, func(r *record) error {
		if r.State != daytona.StateStarted && r.State != daytona.StateStopped {
			return &daytona.Error{Kind: daytona.KindState, Op: op, Subject: r.Name, Message: "it is " + string(r.State) + "; it must be started or stopped"}
		}
		return b.Step(r, daytona.StateSnapshotting, func() (err error) {
			sn, err = b.MakeSnapshot(ctx, spec, func(s *lifecycle.SnapshotRecord[template]) error {
				s.Sandbox, s.Image = r.ID, r.Image
				s.Resources = lifecycle.Merge(spec.Resources, r.Resources)
				if len(s.Entrypoint) == 0 {
					s.Entrypoint = r.Entrypoint
				}
				s.Own = template{Files: b.newFiles(), Config: r.Own.Config, Foreign: true}
				if err := b.SaveSnapshot(s); err != nil {
					return err
				}
				failpoint.Kill("docker/snapshot/intended")
				uncut, cancel := uncutFor(ctx, commitTimeout)
				defer cancel()
				var err error
				if s.Own.Image, err = b.commit(uncut, r, s.Own.Files); err != nil {
					return b.explain(op, r.Name, err)
				}
				return b.measure(uncut, s)
			})
			return err
		})
	})
	return sn, err
}

func (b *backend) measure(ctx context.Context, s *lifecycle.SnapshotRecord[template]) error {
	found, err := b.api.ImageInspect(ctx, s.Own.Files)
	s.SizeBytes = found.Size
	return err
}

// fromSnapshot puts what a snapshot decides into a new record. The snapshot is
// locked meanwhile; afterwards the record is what keeps its image.
func (b *backend) fromSnapshot(r *record, key string) error {
	s, done, err := b.UseSnapshot(lifecycle.CreateOp, key)
	if err != nil {
		return err
	}
	defer done()
	r.Image, r.Snapshot, r.Fresh = s.Image, s.Name, s.Own.Foreign
	r.Own.Image, r.Own.Files, r.Own.Config = s.Own.Image, s.Own.Files, s.Own.Config
	return b.Save(r, false)
}

// refresh gives a container that was not started yet, and has the files of
// another sandbox, an identity of its own. (Its host name and address it has from
// the engine.) Keys of SSH are made empty: ssh-keygen -A makes new ones.
func (b *backend) refresh(ctx context.Context, r *record) error {
	replace := map[string][]byte{}
	machine := make([]byte, 16)
	rand.Read(machine)
	replace["machine-id"] = []byte(hex.EncodeToString(machine) + "\n")
	for _, kind := range []string{"rsa", "dsa", "ecdsa", "ed25519"} {
		replace["ssh/ssh_host_"+kind+"_key"] = nil
		replace["ssh/ssh_host_"+kind+"_key.pub"] = nil
	}
	uncut, cancel := uncut(ctx)
	defer cancel()
	for name, content := range replace {
		where := "/etc/" + name
		st, err := b.api.ContainerStatPath(uncut, b.containerName(r.ID), client.ContainerStatPathOptions{Path: where})
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if st.Stat.Mode.IsDir() || content != nil && st.Stat.Mode.IsRegular() && st.Stat.Size == 0 {
			continue // what has none, is to have none
		}
		mode := int64(st.Stat.Mode.Perm())
		if st.Stat.Mode&fs.ModeSymlink != 0 {
			mode = 0o444
		}
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		dir, base := where[:strings.LastIndex(where, "/")], where[strings.LastIndex(where, "/")+1:]
		if err := w.WriteHeader(&tar.Header{Name: base, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		if _, err := b.api.CopyToContainer(uncut, b.containerName(r.ID), client.CopyToContainerOptions{DestinationPath: dir, Content: &archive}); err != nil {
			return fmt.Errorf("replace %s: %w", where, err)
		}
	}
	return nil
}

// An archive is two objects: the image with the files, as `docker save` writes
// it, and, last, the record with the digest of that.
func archiveKey(id, archive, name string) string {
	return "docker/" + id + "/" + archive + "/" + name
}

// archived is what is stored of a sandbox besides its files.
type archived struct {
	Record *record `json:"record"`
	Name   string  `json:"name"` // of the image
	Image  string  `json:"image"`
	SHA256 string  `json:"sha256"` // of the object
	Size   int64   `json:"size"`
}

// Pack implements lifecycle.Packer.
func (d driver) Pack(ctx context.Context, r *record) (err error) {
	b := d.b
	a := archived{Name: b.newFiles()}
	r.Own.Pending = a.Name
	if err := b.Save(r, true); err != nil {
		return err
	}
	defer func() {
		if derr := d.dropPending(context.WithoutCancel(ctx), r); derr != nil {
			b.log.Warn("the image that an archive was made from could not be removed; it will be tried again", "sandbox", r.ID, "err", derr)
		}
		err = b.explain(lifecycle.ArchiveOp, r.Name, err)
	}()
	uncut, cancel := uncutFor(ctx, commitTimeout)
	defer cancel()
	if a.Image, err = b.commit(uncut, r, a.Name); err != nil {
		return err
	}
	failpoint.Kill("docker/archive/committed")
	saved, err := b.api.ImageSave(ctx, []string{a.Name})
	if err != nil {
		return err
	}
	defer saved.Close()
	in := &counting{r: saved, sum: sha256.New()}
	key := archiveKey(r.ID, r.Archive, "image.tar")
	if err := b.store.Put(ctx, key, in); err != nil {
		return err
	}
	a.SHA256, a.Size = hex.EncodeToString(in.sum.Sum(nil)), in.n
	if err := failpoint.Fail("docker/archive/stored"); err != nil {
		return err
	}
	back, err := b.store.Get(ctx, key)
	if err != nil {
		return err
	}
	defer back.Close()
	check := &counting{r: back, sum: sha256.New()}
	if _, err := io.Copy(io.Discard, check); err != nil {
		return err
	}
	if got := hex.EncodeToString(check.sum.Sum(nil)); got != a.SHA256 || check.n != a.Size {
		return fmt.Errorf("what was stored is not what was read: %s", got)
	}
	failpoint.Kill("docker/archive/verified")
	kept := *r
	kept.Own = own{Config: r.Own.Config, AddUser: r.Own.AddUser, Volumes: r.Own.Volumes}
	a.Record = &kept
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return b.store.Put(ctx, archiveKey(r.ID, r.Archive, "record.json"), bytes.NewReader(data))
}

// counting counts and sums what is read.
type counting struct {
	r   io.Reader
	sum hash.Hash
	n   int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	return n, err
}

// Discard implements lifecycle.Packer.
func (d driver) Discard(ctx context.Context, r *record) error {
	b := d.b
	uncut, cancel := uncut(ctx)
	defer cancel()
	if err := b.removeContainer(uncut, b.containerName(r.ID)); err != nil {
		return b.explain(lifecycle.ArchiveOp, r.Name, err)
	}
	failpoint.Kill("docker/discard/container-removed")
	if r.Own.Kept {
		if err := b.untag(uncut, keptName+":"+r.ID); err != nil {
			return b.explain(lifecycle.ArchiveOp, r.Name, err)
		}
	}
	if r.Own.Pending != "" { // loaded by a restoration
		if err := b.untag(uncut, r.Own.Pending); err != nil {
			return b.explain(lifecycle.ArchiveOp, r.Name, err)
		}
	}
	failpoint.Kill("docker/discard/untagged")
	r.Own.Files, r.Own.Pending, r.Own.Kept = "", "", false
	if err := b.Save(r, true); err != nil {
		return err
	}
	return b.explain(lifecycle.ArchiveOp, r.Name, b.collectFiles(uncut))
}

func (b *backend) untag(ctx context.Context, ref string) error {
	_, err := b.api.ImageRemove(ctx, ref, client.ImageRemoveOptions{PruneChildren: true})
	if errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
		return nil
	}
	return err
}

// Unpack implements lifecycle.Packer.
func (d driver) Unpack(ctx context.Context, r *record) error {
	b := d.b
	bad := func(why string, err error) error {
		return &daytona.Error{Kind: daytona.KindInternal, Op: lifecycle.RestoreOp, Subject: r.Name, Message: "its archive " + why + "; it stays where it is", Err: err}
	}
	unread := func(err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return &daytona.Error{Kind: daytona.KindNotFound, Op: lifecycle.RestoreOp, Subject: r.Name, Message: "its archive is gone; another backend may have restored it", Err: err}
		case daytona.KindOf(err) != daytona.KindInternal: // of the object storage, which is not there for now
			return err
		}
		return bad("cannot be read", err)
	}
	a, err := b.readArchive(ctx, r.ID, r.Archive)
	if err != nil {
		return unread(err)
	}
	r.Own.Files, r.Own.Pending = b.newFiles(), a.Name
	if err := b.Save(r, true); err != nil {
		return err
	}
	failpoint.Kill("docker/restore/intended")
	check := func(into io.Writer) error {
		in, err := b.store.Get(ctx, archiveKey(r.ID, r.Archive, "image.tar"))
		if err != nil {
			return unread(err)
		}
		defer in.Close()
		c := &counting{r: in, sum: sha256.New()}
		if _, err := io.Copy(into, c); err != nil {
			return unread(err)
		}
		if hex.EncodeToString(c.sum.Sum(nil)) != a.SHA256 || c.n != a.Size {
			return bad("is not what was stored", nil)
		}
		return nil
	}
	// Before the engine gets any of it.
	if err := check(io.Discard); err != nil {
		return err
	}
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() { pw.CloseWithError(check(pw)) }()
	resp, err := b.api.ImageLoad(ctx, pr, client.ImageLoadWithQuiet(true))
	if err != nil {
		return b.explain(lifecycle.RestoreOp, r.Name, err)
	}
	defer resp.Close()
	for dec := json.NewDecoder(resp); ; {
		var m jsonstream.Message
		if err := dec.Decode(&m); err == io.EOF {
			break
		} else if err != nil {
			return b.explain(lifecycle.RestoreOp, r.Name, err)
		}
		if m.Error != nil {
			return bad("is not taken by the engine", m.Error)
		}
	}
	uncut, cancel := uncut(ctx)
	defer cancel()
	if err := failpoint.Fail("docker/restore/loaded"); err != nil {
		return err
	}
	found, err := b.api.ImageInspect(uncut, a.Name)
	if err != nil {
		return b.explain(lifecycle.RestoreOp, r.Name, err)
	}
	if found.ID != a.Image {
		b.log.Debug("the engine has another id for a restored image", "was", a.Image, "is", found.ID)
	}
	if _, err := b.api.ImageTag(uncut, client.ImageTagOptions{Source: found.ID, Target: r.Own.Files}); err != nil {
		return b.explain(lifecycle.RestoreOp, r.Name, err)
	}
	failpoint.Kill("docker/restore/tagged")
	if err := b.untag(uncut, a.Name); err != nil {
		return b.explain(lifecycle.RestoreOp, r.Name, err)
	}
	r.Own.Image, r.Own.Pending = found.ID, ""
	return b.Save(r, true)
}

func (b *backend) readArchive(ctx context.Context, id, archive string) (archived, error) {
	var a archived
	in, err := b.store.Get(ctx, archiveKey(id, archive, "record.json"))
	if err != nil {
		return a, err
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, 16<<20))
	if err == nil {
		err = json.Unmarshal(data, &a)
	}
	if err == nil && (a.Record == nil || a.Record.ID != id || !strings.HasPrefix(a.Name, filesName+":")) {
		err = errors.New("it is not that of this sandbox")
	}
	return a, err
}

// Forget implements lifecycle.Packer. The record goes first: without it there is
// no archive.
func (d driver) Forget(ctx context.Context, r *record) error {
	if r.Archive == "" {
		return nil
	}
	for _, name := range []string{"record.json", "image.tar"} {
		if err := d.b.store.Delete(ctx, archiveKey(r.ID, r.Archive, name)); err != nil {
			return err
		}
		if name == "record.json" {
			failpoint.Kill("docker/forget/unlisted")
		}
	}
	return nil
}

// Fetch implements lifecycle.Packer.
func (d driver) Fetch(ctx context.Context, id string) (*record, error) {
	for e, err := range d.b.store.List(ctx, "docker/"+id+"/") {
		if err != nil {
			return nil, err
		}
		parts := strings.Split(e.Key, "/")
		if len(parts) != 4 || parts[3] != "record.json" {
			continue
		}
		a, err := d.b.readArchive(ctx, id, parts[2])
		if err != nil {
			return nil, err
		}
		a.Record.Archive = parts[2]
		return a.Record, nil
	}
	return nil, fs.ErrNotExist
}

// limitsOf are resources as the engine is told to change them.
func limitsOf(r daytona.Resources) *container.Resources {
	limits := &container.Resources{NanoCPUs: int64(r.CPU * 1e9)}
	if r.Processes != 0 {
		limits.PidsLimit = new(int64(r.Processes))
	}
	if m := r.MemoryBytes(); m > 0 {
		limits.Memory, limits.MemorySwap = m, m
	}
	return limits
}
