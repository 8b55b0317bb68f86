package remote

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

const (
	buildOp = "build image"
	// maxLogLine is the longest line of a build's output, in bytes; longer ones
	// are cut.
	maxLogLine = 64 << 10
	// keptLog is how much of it a BuildError has, in bytes.
	keptLog = 32 << 10
	// logGrace is how long the rest of a log is waited for once the build has
	// ended.
	logGrace = 2 * time.Second
)

// built is what the wire wants to know of a build.
type built = wire.CreateBuildInfo

// fromImage is the build of a registry's image: the wire has no other way to make
// a sandbox of one.
func fromImage(op, image string) (*built, error) {
	for _, scheme := range []string{"oci:", "oci-archive:", "docker-archive:", "tar:", "dir:"} {
		if strings.HasPrefix(image, scheme) {
			return nil, unsupported(op, "Image", image, "is a file of this machine, which the server does not see; use an image of a registry")
		}
	}
	switch {
	case image == daytona.ImageHost:
		return nil, unsupported(op, "Image", image, "there is no host; use an image of a registry")
	case strings.ContainsAny(image, " \t\r\n\\$#"):
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: image, Message: "must be the name of an image of a registry"}
	}
	return &built{DockerfileContent: "FROM " + image + "\n"}, nil
}

// buildOf finds the build that a reference names.
func (b *backend) buildOf(ctx context.Context, op, ref string) (*built, error) {
	b.mu.Lock()
	known, ok := b.builds[ref]
	b.mu.Unlock()
	if ok {
		return &known, nil
	}
	s, err := b.snapshot(ctx, op, ref)
	if err != nil {
		return nil, err
	}
	if s.BuildInfo == nil || s.BuildInfo.DockerfileContent == nil {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: ref, Message: "the server does not say what the image was built from"}
	}
	return &built{DockerfileContent: *s.BuildInfo.DockerfileContent, ContextHashes: s.BuildInfo.ContextHashes}, nil
}

// checkBuild refuses what the wire has no words for.
func checkBuild(o daytona.BuildOptions) error {
	for _, f := range []struct {
		field string
		value any
		set   bool
	}{
		{"Args", len(o.Args), len(o.Args) > 0},
		{"Target", o.Target, o.Target != ""},
		{"Secrets", len(o.Secrets), len(o.Secrets) > 0},
		{"Platform", o.Platform, o.Platform != ""},
		{"Bases", len(o.Bases), len(o.Bases) > 0},
		{"NoCache", o.NoCache, o.NoCache},
		{"Pull", o.Pull, o.Pull},
		{"Network", nil, o.Network.Block || o.Network.Allow != nil || o.Network.AllowDomains != nil},
		{"Resources", nil, o.Resources != daytona.Resources{}},
		{"StepTimeout", o.StepTimeout, o.StepTimeout != 0},
	} {
		if f.set {
			return unsupported(buildOp, f.field, f.value, "the wire has no word for it")
		}
	}
	return nil
}

// BuildImage makes a snapshot that is named as the image's reference.
func (b *backend) BuildImage(ctx context.Context, img *daytona.Image, opts daytona.BuildOptions) (daytona.BuiltImage, error) {
	var none daytona.BuiltImage
	if err := checkBuild(opts); err != nil {
		return none, err
	}
	ref, err := img.Ref()
	if err != nil {
		return none, err
	}
	// A build that failed, here or in the hands of somebody else, is no build.
	switch s, err := b.snapshot(ctx, buildOp, ref); {
	case err == nil:
		switch s.State {
		case wire.SnapshotStateActive:
			return outcome(ref, s, true)
		case wire.SnapshotStateInactive:
			if _, err := b.SetSnapshotActive(ctx, s.ID, true); err != nil {
				return none, err
			}
			return outcome(ref, s, true)
		case wire.SnapshotStateError, wire.SnapshotStateBuildFailed, wire.SnapshotStateRemoving:
			if err := b.removeSnapshot(ctx, buildOp, s); err != nil && daytonaKind(err) != daytona.KindNotFound {
				return none, err
			}
		default: // somebody builds it
			return b.follow(ctx, ref, s, opts)
		}
	case daytonaKind(err) != daytona.KindNotFound:
		return none, err
	}
	info, err := b.upload(ctx, img)
	if err != nil {
		return none, err
	}
	in := wire.CreateSnapshot{Name: ref, BuildInfo: info}
	if b.opts.Target != "" {
		in.RegionID = new(b.opts.Target)
	}
	var s wire.Snapshot
	err = b.do(ctx, call{op: buildOp, subject: ref, method: http.MethodPost, path: "/snapshots", in: in, out: &s})
	if daytonaKind(err) == daytona.KindConflict { // somebody was faster
		if s, err = b.snapshot(ctx, buildOp, ref); err != nil {
			return none, err
		}
		return b.follow(ctx, ref, s, opts)
	}
	if err != nil {
		return none, missing(err)
	}
	b.mu.Lock()
	b.builds[ref] = *info
	b.mu.Unlock()
	done, err := b.follow(ctx, ref, s, opts)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if gone := b.removeSnapshot(clean, buildOp, s); gone != nil && daytonaKind(gone) != daytona.KindNotFound {
			b.log.Error("a build that failed is left behind", "snapshot", ref, "error", gone)
		}
	}
	return done, err
}

// outcome is the outcome of a build.
func outcome(ref string, s wire.Snapshot, cached bool) (daytona.BuiltImage, error) {
	image := daytona.BuiltImage{Ref: ref, SizeBytes: sizeOf(s), Cached: cached}
	if s.Ref != nil {
		if _, digest, ok := strings.Cut(*s.Ref, "@"); ok {
			image.Digest = digest
		}
	}
	return image, nil
}

// follow waits for a build and passes on what it says.
func (b *backend) follow(ctx context.Context, ref string, s wire.Snapshot, opts daytona.BuildOptions) (daytona.BuiltImage, error) {
	tail := &tail{}
	logs, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := b.logs(logs, s.ID, func(line string) {
			tail.add(line)
			if opts.OnLog != nil {
				opts.OnLog(daytona.BuildLog{Line: line})
			}
		})
		if err != nil && logs.Err() == nil {
			b.log.Warn("the log of a build was lost", "snapshot", ref, "error", err)
		}
	}()
	s, err := b.settleSnapshot(ctx, buildOp, s)
	grace := time.NewTimer(logGrace)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
	case <-ctx.Done():
	}
	cancel()
	<-ended // opts.OnLog is not called any more
	if err != nil {
		if ctx.Err() != nil {
			return daytona.BuiltImage{}, err
		}
		if e, ok := errors.AsType[*daytona.Error](err); ok && e.Kind != daytona.KindInternal {
			return daytona.BuiltImage{}, missing(err)
		}
		if err := missing(err); daytonaKind(err) == daytona.KindNotFound {
			return daytona.BuiltImage{}, err
		}
		return daytona.BuiltImage{}, &daytona.BuildError{Name: ref, Log: tail.bytes(), Err: err}
	}
	return outcome(ref, s, false)
}

// tail keeps the end of a log.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(append(t.text, line...), '\n')
	if over := len(t.text) - keptLog; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.text...)
}

// logs calls line for each line of a snapshot's build, until the server ends it
// or ctx does. A build that has no log yet is asked for again.
func (b *backend) logs(ctx context.Context, id string, line func(string)) error {
	var at wire.URL
	err := poll(ctx, buildOp, id, func() (bool, error) {
		err := b.do(ctx, call{op: buildOp, subject: id, method: http.MethodGet, path: "/snapshots/" + segment(id) + "/build-logs-url", out: &at})
		if daytonaKind(err) == daytona.KindNotFound { // no runner has it yet
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return err
	}
	u, err := url.Parse(at.URL)
	if err != nil || u.Host == "" {
		return &daytona.Error{Kind: daytona.KindInternal, Op: buildOp, Subject: id, Message: "the server gave no URL of the log", Err: err}
	}
	if err := b.trusts(u); err != nil {
		return err
	}
	q := u.Query()
	q.Set("follow", "true")
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header = b.header()
	c := call{op: buildOp, subject: id}
	resp, err := b.client.Do(req)
	if err != nil {
		return b.unreachable(c, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
		return b.refused(c, resp.StatusCode, text)
	}
	r := bufio.NewReaderSize(resp.Body, maxLogLine)
	for {
		text, err := r.ReadSlice('\n')
		if s := strings.TrimRight(strings.ToValidUTF8(string(text), "�"), "\r\n"); s != "" {
			line(s)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return b.unreachable(c, err)
		}
	}
}

// trusts refuses a place, named by the server, that the key would have to go to
// in the clear although the API's is not.
func (b *backend) trusts(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return &daytona.Error{Kind: daytona.KindInternal, Op: "connect", Subject: u.Redacted(), Message: "the server named a place that is not an http URL"}
	}
	if strings.HasPrefix(b.api, "http://") { // that is so already
		return nil
	}
	return b.opts.secure("toolboxProxyUrl", u)
}
