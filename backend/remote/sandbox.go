package remote

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

const createOp = "create sandbox"

// Create makes a sandbox and waits until it is started.
func (b *backend) Create(ctx context.Context, spec daytona.Spec) (daytona.Info, error) {
	nonce := rand.Text()
	c, err := b.request(spec, nonce)
	if err != nil {
		return daytona.Info{}, err
	}
	if err := b.origin(ctx, spec, &c); err != nil {
		return daytona.Info{}, err
	}
	if err := b.alive(createOp); err != nil {
		return daytona.Info{}, err
	}
	var s wire.Sandbox
	if err := b.do(ctx, call{op: createOp, subject: spec.Name, method: http.MethodPost, path: "/sandbox", in: c, out: &s}); err != nil {
		if ambiguous(ctx, err) {
			b.forget(nonce)
		}
		// Of what it does not have, or has for some sandboxes only, a server says in words only.
		if e, ok := errors.AsType[*daytona.Error](err); ok {
			switch unsupported := e.Kind == daytona.KindUnsupported; {
			case unsupported && c.DomainAllowList != nil && strings.Contains(strings.ToLower(e.Message), "domain"):
				e.Field, e.Value = "Network.AllowDomains", *c.DomainAllowList
			case (unsupported || e.Kind == daytona.KindInvalid) && spec.Resources.GPU != 0 && strings.Contains(e.Message, "GPU"):
				e.Kind, e.Field, e.Value = daytona.KindUnsupported, "Resources.GPU", spec.Resources.GPU
			}
		}
		return daytona.Info{}, missing(err)
	}
	info, err := b.settle(ctx, createOp, s, daytona.StateStarted)
	if err == nil {
		err = fits(c, s)
	}
	if err == nil {
		err = b.adopt(info)
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if gone := b.remove(clean, createOp, s.ID); gone != nil && daytonaKind(gone) != daytona.KindNotFound {
			b.log.Error("a sandbox that failed to start is left behind", "sandbox", s.ID, "error", gone)
		}
		return daytona.Info{}, missing(err)
	}
	return b.placed(ctx, info), nil
}

// origin says what a sandbox is made from.
func (b *backend) origin(ctx context.Context, spec daytona.Spec, c *wire.CreateSandbox) error {
	r, err := resourcesOf(createOp, spec.Resources)
	if err != nil {
		return err
	}
	limited := spec.Resources != daytona.Resources{}
	switch {
	case spec.Image == "":
		switch {
		case limited:
			field, value := limit(spec.Resources)
			return unsupported(createOp, field, value, "a snapshot has its own resources; set Image")
		case spec.WorkDir != "":
			return unsupported(createOp, "WorkDir", spec.WorkDir, "a snapshot has its own; set Image")
		case len(spec.Entrypoint) > 0:
			return unsupported(createOp, "Entrypoint", strings.Join(spec.Entrypoint, " "), "a snapshot has its own; set Image")
		}
		if spec.Snapshot != "" {
			c.Snapshot = new(spec.Snapshot)
		}
		return nil
	case builtRef.MatchString(spec.Image):
		if !limited && spec.WorkDir == "" && len(spec.Entrypoint) == 0 {
			c.Snapshot = new(spec.Image)
			return nil
		}
		if c.BuildInfo, err = b.buildOf(ctx, createOp, spec.Image); err != nil {
			return err
		}
	default:
		if c.BuildInfo, err = fromImage(createOp, spec.Image); err != nil {
			return err
		}
	}
	more, err := instructions(spec)
	if err != nil {
		return err
	}
	c.BuildInfo.DockerfileContent += more
	c.CPU, c.Memory, c.Disk, c.GPU = r.cpu, r.memory, r.disk, r.gpu
	return nil
}

// limit names one that is set.
func limit(r daytona.Resources) (field string, value any) {
	switch {
	case r.CPU != 0:
		return "Resources.CPU", r.CPU
	case r.Memory != 0:
		return "Resources.Memory", r.Memory
	case r.Disk != 0:
		return "Resources.Disk", r.Disk
	}
	return "Resources.GPU", r.GPU
}

// literal writes what a Dockerfile would take for a variable or a quote.
var literal = strings.NewReplacer(`\`, `\\`, `$`, `\$`, `"`, `\"`, `'`, `\'`)

// instructions are what else the Dockerfile has to say.
func instructions(spec daytona.Spec) (string, error) {
	var text strings.Builder
	if spec.WorkDir != "" {
		if strings.ContainsFunc(spec.WorkDir, unicode.IsControl) || strings.HasSuffix(spec.WorkDir, " ") {
			return "", unsupported(createOp, "WorkDir", spec.WorkDir, "cannot be written into a Dockerfile")
		}
		fmt.Fprintf(&text, "WORKDIR %s\n", literal.Replace(spec.WorkDir))
	}
	if len(spec.Entrypoint) > 0 {
		list, err := json.Marshal(spec.Entrypoint)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&text, "ENTRYPOINT %s\n", list)
	}
	return text.String(), nil
}

// ambiguous reports whether a creation that failed may still have made something.
func ambiguous(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	switch daytonaKind(err) {
	case daytona.KindUnavailable, daytona.KindInternal, daytona.KindTimeout:
		return true
	}
	return false
}

// forget deletes what a creation has made whose answer was lost, if anything. It
// may not be there yet: the request may still be under way.
func (b *backend) forget(nonce string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	for i := range 4 {
		if i > 0 && sleep(ctx, time.Duration(i)*250*time.Millisecond) != nil {
			return
		}
		var page wire.ListSandboxesResponse
		labels, _ := json.Marshal(map[string]string{labelRequest: nonce})
		if err := b.do(ctx, call{op: createOp, method: http.MethodGet, path: "/sandbox", query: url.Values{"labels": {string(labels)}}, out: &page}); err != nil {
			b.log.Error("a sandbox may be left behind: the server cannot be asked", "error", err)
			return
		}
		for _, s := range page.Items {
			if s.Labels[labelRequest] != nonce {
				continue // the server does not know the filter
			}
			if err := b.remove(ctx, createOp, s.ID); err != nil && daytonaKind(err) != daytona.KindNotFound {
				b.log.Error("a sandbox is left behind", "sandbox", s.ID, "error", err)
			}
			return
		}
	}
}

// unknownUser is what servers say of a user that the image has not: this module's,
// and those with a Docker engine.
var unknownUser = regexp.MustCompile(`\bUser = "([^"]*)"|unable to find user ([^:\s]+)`)

// missing turns what servers say, in words only, of an image that is not there into
// KindNotFound, and of a user that the image has not into KindInvalid.
func missing(err error) error {
	e, ok := errors.AsType[*daytona.Error](err)
	if !ok || e.Kind == daytona.KindNotFound || e.Kind == daytona.KindUnauthorized {
		return err
	}
	if m := unknownUser.FindStringSubmatch(e.Message); m != nil && e.Kind == daytona.KindInternal {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: e.Op, Subject: e.Subject, Field: "User", Value: m[1] + m[2], Message: e.Message, Err: e.Err}
	}
	text := strings.ToLower(e.Error())
	for _, s := range []string{"manifest unknown", "manifest_unknown", "name_unknown", "repository does not exist", "image not found", "no such image", "failed to resolve source metadata"} {
		if strings.Contains(text, s) {
			return &daytona.Error{Kind: daytona.KindNotFound, Op: e.Op, Subject: e.Subject, Message: e.Message, Err: e.Err}
		}
	}
	return err
}

// alive says whether the backend is open.
func (b *backend) alive(op string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return &daytona.Error{Kind: daytona.KindState, Op: op, Message: "the backend is closed"}
	}
	return nil
}

// adopt makes a sandbox this backend's own, unless it is persistent.
func (b *backend) adopt(i daytona.Info) error {
	if i.Persistent {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return &daytona.Error{Kind: daytona.KindState, Op: createOp, Message: "the backend was closed meanwhile"}
	}
	b.mine[i.ID] = i.AutoStop == 0
	if b.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		b.stop = stop
		b.signs.Go(func() { b.sign(ctx) })
	}
	return nil
}

// sign gives signs of life, for leases not to run out.
func (b *backend) sign(ctx context.Context) {
	for sleep(ctx, b.opts.Lease/3) == nil {
		b.mu.Lock()
		var ids []string
		for id, needs := range b.mine {
			if needs {
				ids = append(ids, id)
			}
		}
		b.mu.Unlock()
		err := each(ids, func(id string) error {
			ctx, cancel := context.WithTimeout(ctx, b.opts.Lease/3)
			defer cancel()
			err := b.do(ctx, call{op: "refresh activity", subject: id, method: http.MethodPost, path: "/sandbox/" + segment(id) + "/last-activity"})
			if daytonaKind(err) == daytona.KindNotFound {
				b.drop(id)
				return nil
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			b.log.Warn("the server was given no sign of life", "error", err)
		}
	}
}

// drop forgets a sandbox that is gone.
func (b *backend) drop(id string) {
	b.mu.Lock()
	delete(b.mine, id)
	delete(b.known, id)
	b.mu.Unlock()
}

// nameable refuses what no sandbox can be called, and no server should be asked.
func nameable(op, idOrName string) error {
	if idOrName == "" || strings.ContainsFunc(idOrName, unicode.IsControl) {
		return &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: idOrName, Message: "no sandbox is called that"}
	}
	return nil
}

func (b *backend) get(ctx context.Context, op, idOrName string) (wire.Sandbox, error) {
	var s wire.Sandbox
	if err := nameable(op, idOrName); err != nil {
		return s, err
	}
	err := b.do(ctx, call{op: op, subject: idOrName, method: http.MethodGet, path: "/sandbox/" + segment(idOrName), out: &s})
	if err == nil && stateOf(s.State) == daytona.StateDestroyed {
		err = &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: idOrName, Message: "it is destroyed"}
	}
	return s, err
}

func (b *backend) Get(ctx context.Context, idOrName string) (daytona.Info, error) {
	s, err := b.get(ctx, "get sandbox", idOrName)
	if err != nil {
		return daytona.Info{}, err
	}
	return b.placed(ctx, b.info(s)), nil
}

// settle waits until a sandbox is in one of the states. An error state ends it,
// and so does another operation that wanted a different state and has it: who
// asks now and then may see nothing of the state between.
func (b *backend) settle(ctx context.Context, op string, s wire.Sandbox, want ...daytona.State) (daytona.Info, error) {
	id := s.ID
	var info daytona.Info
	done := func(s wire.Sandbox) (bool, error) {
		info = b.info(s)
		if slices.Contains(want, info.State) {
			return true, nil
		}
		if info.State == daytona.StateError {
			reason := info.Reason
			if reason == "" {
				reason = "the server gives no reason"
			}
			return true, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: id, Message: "the sandbox is in an error state: " + reason}
		}
		if s.State != nil && s.DesiredState != nil && *s.State == *s.DesiredState {
			return true, &daytona.Error{Kind: daytona.KindConflict, Op: op, Subject: id, Message: "another operation has changed it meanwhile: the sandbox is " + *s.State}
		}
		return false, nil
	}
	if ok, err := done(s); ok {
		return info, err
	}
	err := poll(ctx, op, id, func() (bool, error) {
		s, err := b.get(ctx, op, id)
		if err != nil {
			return true, err
		}
		return done(s)
	})
	return info, err
}

// transition calls a verb and waits until a sandbox is in a state. What goes on
// already is waited for: 409 is that another transition is under way.
func (b *backend) transition(ctx context.Context, op, id, verb string, query url.Values, in any, want ...daytona.State) (daytona.Info, error) {
	var s wire.Sandbox
	if err := nameable(op, id); err != nil {
		return daytona.Info{}, err
	}
	err := b.free(ctx, op, id, func() error {
		return b.do(ctx, call{op: op, subject: id, method: http.MethodPost, path: "/sandbox/" + segment(id) + "/" + verb, query: query, in: in})
	})
	if err != nil {
		return daytona.Info{}, err
	}
	// The answer is not needed: servers differ in what they say in it.
	if s, err = b.get(ctx, op, id); err != nil {
		return daytona.Info{}, err
	}
	return b.settle(ctx, op, s, want...)
}

// free repeats f while another operation is under way, for at most half a minute.
func (b *backend) free(ctx context.Context, op, id string, f func() error) error {
	deadline := time.Now().Add(30 * time.Second)
	return poll(ctx, op, id, func() (bool, error) {
		err := f()
		if e, ok := errors.AsType[*daytona.Error](err); ok && e.Kind == daytona.KindConflict && time.Now().Before(deadline) &&
			(strings.Contains(e.Message, "in progress") || strings.Contains(e.Message, "modified by another operation")) {
			return false, nil
		}
		return true, err
	})
}

func (b *backend) Start(ctx context.Context, id string) (daytona.Info, error) {
	info, err := b.transition(ctx, "start sandbox", id, "start", nil, nil, daytona.StateStarted)
	return b.placed(ctx, info), err
}

func (b *backend) Stop(ctx context.Context, id string, opts daytona.StopOptions) (daytona.Info, error) {
	const op = "stop sandbox"
	before, err := b.get(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	info := b.info(before)
	switch info.State {
	case daytona.StateStopped, daytona.StateArchived, daytona.StateArchiving:
		return info, nil
	case daytona.StateStopping:
		after, err := b.settle(ctx, op, before, daytona.StateStopped)
		return b.stopped(info, after, err)
	}
	query := url.Values{}
	if opts.Force {
		query.Set("force", "true")
	}
	after, err := b.transition(ctx, op, id, "stop", query, nil, daytona.StateStopped)
	return b.stopped(info, after, err)
}

// stopped is the outcome of a stop, which deletes what is ephemeral.
func (b *backend) stopped(before, after daytona.Info, err error) (daytona.Info, error) {
	if daytonaKind(err) == daytona.KindNotFound {
		before.State = daytona.StateDestroyed
		b.drop(before.ID)
		return before, nil
	}
	return after, err
}

func (b *backend) Delete(ctx context.Context, id string) error {
	return b.remove(ctx, "delete sandbox", id)
}

// remove deletes a sandbox and waits until it is gone. Of several calls at once
// one succeeds: to the server, all would.
func (b *backend) remove(ctx context.Context, op, id string) error {
	s, err := b.get(ctx, op, id)
	if err != nil {
		if daytonaKind(err) == daytona.KindNotFound {
			b.drop(id)
		}
		return err
	}
	id = s.ID
	if !b.claim(id) {
		if err := b.vanish(ctx, op, id); err != nil {
			return err
		}
		return &daytona.Error{Kind: daytona.KindNotFound, Op: op, Subject: id, Message: "it is destroyed"}
	}
	defer b.release(id)
	if stateOf(s.State) != daytona.StateDestroying {
		err = b.free(ctx, op, id, func() error {
			return b.do(ctx, call{op: op, subject: id, method: http.MethodDelete, path: "/sandbox/" + segment(id)})
		})
	}
	if err == nil {
		err = b.vanish(ctx, op, id)
	}
	if err == nil || daytonaKind(err) == daytona.KindNotFound {
		b.drop(id)
	}
	return err
}

// claim says that a sandbox is being deleted, unless it is already.
func (b *backend) claim(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deleting[id] {
		return false
	}
	b.deleting[id] = true
	return true
}

func (b *backend) release(id string) {
	b.mu.Lock()
	delete(b.deleting, id)
	b.mu.Unlock()
}

// vanish waits until a sandbox is gone.
func (b *backend) vanish(ctx context.Context, op, id string) error {
	return poll(ctx, op, id, func() (bool, error) {
		s, err := b.get(ctx, op, id)
		switch {
		case daytonaKind(err) == daytona.KindNotFound:
			return true, nil
		case err != nil:
			return true, err
		case stateOf(s.State) == daytona.StateError:
			return true, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: id, Message: "the server failed: " + b.info(s).Reason}
		}
		return false, nil
	})
}

func (b *backend) List(ctx context.Context, filter daytona.Filter) iter.Seq2[daytona.Info, error] {
	const op = "list sandboxes"
	return func(yield func(daytona.Info, error) bool) {
		query := url.Values{"limit": {"200"}, "sort": {"createdAt"}, "order": {"asc"}, "includeErroredDeleted": {"false"}}
		if len(filter.Labels) > 0 {
			labels, err := json.Marshal(filter.Labels)
			if err != nil {
				yield(daytona.Info{}, err)
				return
			}
			query.Set("labels", string(labels))
		}
		if filter.NamePrefix != "" {
			query.Set("name", filter.NamePrefix)
		}
		for _, s := range filter.States {
			query["states"] = append(query["states"], wireStates(s)...)
		}
		if slices.Contains(query["states"], wire.SandboxStateDestroyed) { // never in a list, and refused
			query["states"] = slices.DeleteFunc(query["states"], func(s string) bool { return s == wire.SandboxStateDestroyed })
			if len(query["states"]) == 0 {
				return
			}
		}
		seen := map[string]bool{}
		for {
			var page wire.ListSandboxesResponse
			if err := b.do(ctx, call{op: op, method: http.MethodGet, path: "/sandbox", query: query, out: &page}); err != nil {
				yield(daytona.Info{}, err)
				return
			}
			for _, item := range page.Items {
				s, err := fromItem(item)
				if err != nil {
					yield(daytona.Info{}, &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: item.ID, Message: "the server's answer is malformed", Err: err})
					return
				}
				i := b.info(s)
				if i.State == daytona.StateDestroyed || seen[i.ID] || !filter.Match(i) {
					continue
				}
				seen[i.ID] = true // a list that changes meanwhile may show one twice
				if !yield(i, nil) {
					return
				}
			}
			if page.NextCursor == nil || *page.NextCursor == "" {
				return
			}
			if query.Get("cursor") == *page.NextCursor {
				yield(daytona.Info{}, &daytona.Error{Kind: daytona.KindInternal, Op: op, Message: "the server gives the same page again and again"})
				return
			}
			query.Set("cursor", *page.NextCursor)
		}
	}
}

// wireStates are the states of the wire that a state stands for.
func wireStates(s daytona.State) []string {
	switch s {
	case daytona.StateCreating:
		return []string{wire.SandboxStateCreating, wire.SandboxStatePendingBuild, wire.SandboxStateBuildingSnapshot, wire.SandboxStatePullingSnapshot}
	case daytona.StateError:
		return []string{wire.SandboxStateError, wire.SandboxStateBuildFailed}
	}
	return []string{string(s)}
}

// Wait implements daytona.Watcher.
func (b *backend) Wait(ctx context.Context, id string, states ...daytona.State) (info daytona.Info, err error) {
	const op = "wait for sandbox"
	err = poll(ctx, op, id, func() (bool, error) {
		s, err := b.get(ctx, op, id)
		if err != nil {
			return true, err
		}
		info = b.info(s)
		return slices.Contains(states, info.State), nil
	})
	if err != nil {
		return daytona.Info{}, err
	}
	return info, nil
}

func (b *backend) Pause(ctx context.Context, id string, opts daytona.PauseOptions) (daytona.Info, error) {
	const op = "pause sandbox"
	if opts.Disk {
		return daytona.Info{}, unsupported(op, "Disk", true, "where the memory of a paused sandbox is, the server decides")
	}
	s, err := b.get(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	if stateOf(s.State) == daytona.StatePaused {
		return b.info(s), nil
	}
	return b.transition(ctx, op, id, "pause", nil, nil, daytona.StatePaused)
}

func (b *backend) Resume(ctx context.Context, id string) (daytona.Info, error) {
	const op = "resume sandbox"
	s, err := b.get(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	switch state := stateOf(s.State); state {
	case daytona.StateStarted:
		return b.info(s), nil
	case daytona.StatePaused, daytona.StatePausing, daytona.StateResuming:
		return b.transition(ctx, op, id, "start", nil, nil, daytona.StateStarted)
	default:
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindState, Op: op, Subject: id, Message: "the sandbox is " + string(state) + ", not paused"}
	}
}

func (b *backend) Fork(ctx context.Context, id string, opts daytona.ForkOptions) ([]daytona.Info, error) {
	const op = "fork sandbox"
	switch {
	case opts.Memory:
		return nil, unsupported(op, "Memory", true, "whether programs go on in a fork, the server decides")
	case len(opts.Names) > 1:
		return nil, unsupported(op, "Names", len(opts.Names), "the wire forks one at a time, not several from the same moment")
	}
	var in wire.ForkSandbox
	if len(opts.Names) == 1 && opts.Names[0] != "" {
		in.Name = new(opts.Names[0])
	}
	var s wire.Sandbox
	err := b.free(ctx, op, id, func() error {
		return b.do(ctx, call{op: op, subject: id, method: http.MethodPost, path: "/sandbox/" + segment(id) + "/fork", in: in, out: &s})
	})
	if err != nil {
		return nil, err
	}
	info, err := b.settle(ctx, op, s, daytona.StateStarted)
	if err == nil {
		// Labels are the parent's; which it is, is kept in one more.
		own := s.Labels
		if own == nil {
			own = map[string]string{}
		}
		parent := id
		if p, perr := b.get(ctx, op, id); perr == nil {
			parent = p.ID
		}
		own[labelParent] = parent
		if err = b.setLabels(ctx, op, s.ID, own); err == nil {
			info.Parent = parent
			err = b.adopt(info)
		}
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if gone := b.remove(clean, op, s.ID); gone != nil && daytonaKind(gone) != daytona.KindNotFound {
			b.log.Error("a fork that failed is left behind", "sandbox", s.ID, "error", gone)
		}
		return nil, err
	}
	return []daytona.Info{b.placed(ctx, info)}, nil
}

func (b *backend) Resize(ctx context.Context, id string, r daytona.Resources) (daytona.Info, error) {
	const op = "resize sandbox"
	w, err := resourcesOf(op, r)
	if err != nil {
		return daytona.Info{}, err
	}
	s, err := b.get(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	if w.gpu != nil && float64(*w.gpu) != s.GPU {
		return daytona.Info{}, unsupported(op, "Resources.GPU", r.GPU, "the wire does not change it")
	}
	same := func(n *int, has float64) bool { return n == nil || float64(*n) == has }
	if same(w.cpu, s.CPU) && same(w.memory, s.Memory) && same(w.disk, s.Disk) {
		return b.info(s), nil // which the server would refuse
	}
	switch state := stateOf(s.State); {
	case w.disk != nil && float64(*w.disk) < s.Disk:
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: id, Field: "Resources.Disk", Value: r.Disk, Message: "a disk can only grow"}
	case w.disk != nil && float64(*w.disk) > s.Disk && state == daytona.StateStarted:
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindState, Op: op, Subject: id, Message: "the disk can be changed while the sandbox is stopped"}
	}
	return b.transition(ctx, op, id, "resize", nil, wire.ResizeSandbox{CPU: w.cpu, Memory: w.memory, Disk: w.disk}, daytona.StateStarted, daytona.StateStopped)
}

func (b *backend) SetNetworkPolicy(ctx context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	const op = "set network policy"
	block, networks, domains, err := wireNetwork(op, p)
	if err != nil {
		return daytona.Info{}, err
	}
	in := wire.UpdateSandboxNetworkSettings{NetworkBlockAll: new(block)}
	if !block { // empty ones clear what was there
		in.NetworkAllowList, in.DomainAllowList = new(networks), new(domains)
	}
	err = b.do(ctx, call{op: op, subject: id, method: http.MethodPost, path: "/sandbox/" + segment(id) + "/network-settings", in: in})
	if err != nil {
		return daytona.Info{}, err
	}
	info, err := b.Get(ctx, id)
	if err == nil && len(p.AllowDomains) > 0 && !slices.Equal(info.Network.AllowDomains, p.AllowDomains) {
		err = unsupported(op, "Network.AllowDomains", domains, "the server does not know it")
	}
	return info, err
}

func (b *backend) Archive(ctx context.Context, id string) (daytona.Info, error) {
	const op = "archive sandbox"
	s, err := b.get(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	switch stateOf(s.State) {
	case daytona.StateArchived:
		return b.info(s), nil
	case daytona.StateArchiving:
		return b.settle(ctx, op, s, daytona.StateArchived)
	}
	return b.transition(ctx, op, id, "archive", nil, nil, daytona.StateArchived)
}

// Restore starts and stops, as the wire has no other way.
func (b *backend) Restore(ctx context.Context, id string) (daytona.Info, error) {
	const op = "restore sandbox"
	s, err := b.get(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	switch state := stateOf(s.State); state {
	case daytona.StateStopped:
		return b.info(s), nil
	case daytona.StateArchived, daytona.StateArchiving, daytona.StateRestoring:
	default:
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindState, Op: op, Subject: id, Message: "the sandbox is " + string(state) + ", not archived"}
	}
	if _, err := b.transition(ctx, op, id, "start", nil, nil, daytona.StateStarted); err != nil {
		return daytona.Info{}, err
	}
	return b.transition(ctx, op, id, "stop", nil, nil, daytona.StateStopped)
}

func (b *backend) setLabels(ctx context.Context, op, id string, labels map[string]string) error {
	return b.do(ctx, call{op: op, subject: id, method: http.MethodPut, path: "/sandbox/" + segment(id) + "/labels", in: wire.SandboxLabels{Labels: labels}})
}

// Update changes one thing after the other: the wire has no way to change all at
// once. Values are checked before.
func (b *backend) Update(ctx context.Context, id string, u daytona.Update) (daytona.Info, error) {
	const op = "update sandbox"
	type change struct {
		verb string
		n    int
	}
	var changes []change
	for _, d := range []struct {
		field, verb string
		value       *time.Duration
		never       int
	}{
		{"AutoStop", "autostop", u.AutoStop, 0}, {"AutoPause", "autopause", u.AutoPause, 0},
		{"AutoArchive", "autoarchive", u.AutoArchive, 0}, {"AutoDelete", "autodelete", u.AutoDelete, -1},
	} {
		if d.value == nil {
			continue
		}
		n, err := minutes(op, d.field, *d.value)
		if err != nil {
			return daytona.Info{}, err
		}
		if n == 0 {
			n = d.never
		}
		changes = append(changes, change{d.verb, n})
	}
	s, err := b.get(ctx, op, id)
	if err != nil {
		return daytona.Info{}, err
	}
	own := hidden(s.Labels)
	lease, leasing := own[labelLease]
	if leasing {
		if u.AutoPause != nil && *u.AutoPause != 0 {
			return daytona.Info{}, unsupported(op, "AutoPause", *u.AutoPause, "needs Persistent: a paused sandbox would outlive its owner")
		}
		// The lease stays where nothing is set in its place.
		minutes := int(b.opts.Lease / time.Minute)
		l := leased{strings.Contains(lease, "-stop"), strings.Contains(lease, "-delete")}
		for i, c := range changes {
			switch c.verb {
			case "autostop":
				if l.stop = c.n == 0; l.stop {
					changes[i].n = minutes
				}
			case "autodelete":
				if l.remove = c.n < 0; l.remove {
					changes[i].n = 4 * minutes
				}
			}
		}
		own[labelLease] = l.String()
		b.mu.Lock()
		if _, ours := b.mine[s.ID]; ours {
			b.mine[s.ID] = l.stop
		}
		b.mu.Unlock()
	}
	if u.Labels != nil || own[labelLease] != lease {
		labels := u.Labels
		if labels == nil {
			labels = visible(s.Labels)
		}
		for k, v := range labels {
			if err := checkLabel(op, k, v, own[labelLanguage]); err != nil {
				return daytona.Info{}, err
			}
			own[k] = v
		}
		if err := b.setLabels(ctx, op, id, own); err != nil {
			return daytona.Info{}, err
		}
	}
	for _, c := range changes {
		err := b.do(ctx, call{op: op, subject: id, method: http.MethodPost, path: "/sandbox/" + segment(id) + "/" + c.verb + "/" + strconv.Itoa(c.n)})
		if err != nil {
			return daytona.Info{}, err
		}
	}
	return b.Get(ctx, id)
}
