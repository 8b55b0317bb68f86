package desktop

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// nodeLimit bounds a walk, matchLimit what it finds, depthLimit how deep it
	// goes whatever is asked for.
	nodeLimit    = 5000
	matchLimit   = 1000
	defaultLimit = 100
	depthLimit   = 100
	// walkTime is after how long a walk gives what it has, askTime how long one
	// program is waited for.
	walkTime = 20 * time.Second
	askTime  = 3 * time.Second
	// textMost is how much of a name is given, in bytes.
	textMost = 4 << 10
	// atOnce is how many objects are asked about at the same time.
	atOnce = 16
)

const (
	accessible = "org.a11y.atspi.Accessible"
	component  = "org.a11y.atspi.Component"
	rootPath   = dbus.ObjectPath("/org/a11y/atspi/accessible/root")
	nullPath   = dbus.ObjectPath("/org/a11y/atspi/null")
)

// stateNames are the states of an object by their number (AtspiStateType).
var stateNames = []string{
	"invalid", "active", "armed", "busy", "checked", "collapsed", "defunct", "editable", "enabled", "expandable",
	"expanded", "focusable", "focused", "has-tooltip", "horizontal", "iconified", "modal", "multi-line",
	"multiselectable", "opaque", "pressed", "resizable", "selectable", "selected", "sensitive", "showing",
	"single-line", "stale", "transient", "vertical", "visible", "manages-descendants", "indeterminate", "required",
	"truncated", "animated", "invalid-entry", "supports-autocompletion", "selectable-text", "is-default", "visited",
	"checkable", "has-popup", "read-only",
}

// bus is the connection to the accessibility bus that one request has.
type bus struct {
	ctx  context.Context
	conn *dbus.Conn
}

// ref is an object of a program: a bus name and a path.
type ref struct {
	Name string
	Path dbus.ObjectPath
}

// id is how callers name an object.
func (r ref) id() string { return r.Name + string(r.Path) }

// uniqueName says whether a bus name is one that the bus has given, ":N.N".
func uniqueName(name string) bool {
	digits := func(s string) bool { return s != "" && len(s) <= 10 && strings.Trim(s, "0123456789") == "" }
	rest, ok := strings.CutPrefix(name, ":")
	a, b, dot := strings.Cut(rest, ".")
	return ok && dot && digits(a) && digits(b)
}

func parseID(id string) (ref, error) {
	i := strings.IndexByte(id, '/')
	if i < 0 || len(id) > 1024 || !uniqueName(id[:i]) || !dbus.ObjectPath(id[i:]).IsValid() {
		return ref{}, notThere("node %.100q: no such id; take one of a node that the tree has now", id)
	}
	return ref{id[:i], dbus.ObjectPath(id[i:])}, nil
}

func notThere(format string, args ...any) error {
	return &refusal{http.StatusNotFound, "", "not found: " + fmt.Sprintf(format, args...)}
}

func unavailable(format string, args ...any) error {
	return &refusal{http.StatusServiceUnavailable, wire.CodeA11yUnavailable, "the accessibility bus is unavailable: " + fmt.Sprintf(format, args...)}
}

// openBus connects to the bus that programs describe themselves on. The session
// bus knows where it is, and starts it.
func openBus(ctx context.Context, session string) (*bus, error) {
	if session == "" {
		return nil, unavailable("the desktop has no session bus; is dbus-daemon installed in the sandbox?")
	}
	first, err := connect(ctx, session)
	if err != nil {
		return nil, unavailable("connect to the session bus: %v", err)
	}
	defer first.Close()
	ask, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var address string
	if err := first.Object("org.a11y.Bus", "/org/a11y/bus").CallWithContext(ask, "org.a11y.Bus.GetAddress", 0).Store(&address); err != nil {
		return nil, unavailable("%v; is at-spi2-core installed in the sandbox?", err)
	}
	conn, err := connect(ctx, address)
	if err != nil {
		return nil, unavailable("connect to it: %v", err)
	}
	return &bus{ctx, conn}, nil
}

func connect(ctx context.Context, address string) (*dbus.Conn, error) {
	conn, err := dbus.Dial(address, dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (b *bus) close() { b.conn.Close() }

// call asks an object, and waits no longer than askTime.
func (b *bus) call(r ref, method string, out any, args ...any) error {
	ctx, cancel := context.WithTimeout(b.ctx, askTime)
	defer cancel()
	c := b.conn.Object(r.Name, r.Path).CallWithContext(ctx, method, 0, args...)
	if out == nil {
		return c.Err
	}
	return c.Store(out)
}

// explain turns an error of the bus about an object into one of the wire.
func explain(r ref, err error) error {
	if e, ok := errors.AsType[dbus.Error](err); ok {
		switch strings.TrimPrefix(e.Name, "org.freedesktop.DBus.Error.") {
		// NoReply is that its program has ended with the question unanswered.
		case "UnknownObject", "UnknownMethod", "UnknownInterface", "ServiceUnknown", "NameHasNoOwner", "NoReply":
			return notThere("node %q: it has gone, or its program cannot do this: %v", r.id(), e)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("node %q: its program does not answer", r.id())
	}
	return fmt.Errorf("node %q: %w", r.id(), err)
}

// children are the objects directly beneath one, at most limit of them.
func (b *bus) children(r ref, limit int) ([]ref, bool, error) {
	var list []ref
	if err := b.call(r, accessible+".GetChildren", &list); err != nil {
		return nil, false, err
	}
	list = slices.DeleteFunc(list, func(c ref) bool { return c.Path == nullPath })
	if len(list) > limit {
		return list[:limit], true, nil
	}
	return list, false, nil
}

func (b *bus) states(r ref) ([]string, error) {
	var words []uint32
	if err := b.call(r, accessible+".GetState", &words); err != nil {
		return nil, err
	}
	states := []string{}
	for i, name := range stateNames {
		if i/32 < len(words) && words[i/32]&(1<<(i%32)) != 0 {
			states = append(states, name)
		}
	}
	return states, nil
}

func clip(s string) string {
	if len(s) > textMost {
		s = s[:textMost]
	}
	return strings.ToValidUTF8(s, "")
}

// describe asks an object about itself. What it does not answer is left empty.
func (b *bus) describe(r ref) (*wire.AccessibilityNode, error) {
	n := &wire.AccessibilityNode{ID: r.id(), States: []string{}, Actions: []string{}, Children: []*wire.AccessibilityNode{}}
	if err := b.call(r, accessible+".GetRoleName", &n.Role); err != nil {
		return nil, err
	}
	n.Role = clip(n.Role)
	var properties map[string]dbus.Variant
	if b.call(r, "org.freedesktop.DBus.Properties.GetAll", &properties, accessible) == nil {
		for name, to := range map[string]*string{"Name": &n.Name, "Description": &n.Description} {
			if s, ok := properties[name].Value().(string); ok {
				*to = clip(s)
			}
		}
	}
	if states, err := b.states(r); err == nil {
		n.States = states
	}
	var interfaces []string
	_ = b.call(r, accessible+".GetInterfaces", &interfaces)
	if slices.Contains(interfaces, component) {
		var e struct{ X, Y, W, H int32 }
		if b.call(r, component+".GetExtents", &e, uint32(0)) == nil {
			n.Bounds = &wire.Rectangle{X: int(e.X), Y: int(e.Y), Width: int(e.W), Height: int(e.H)}
		}
	}
	if slices.Contains(interfaces, "org.a11y.atspi.Action") {
		if actions, err := b.actions(r); err == nil {
			n.Actions = actions
		}
	}
	return n, nil
}

// actions are the names of what an object can be made to do.
func (b *bus) actions(r ref) ([]string, error) {
	var list []struct{ Name, Description, Key string }
	if err := b.call(r, "org.a11y.atspi.Action.GetActions", &list); err != nil {
		return nil, err
	}
	names := []string{}
	for _, a := range list[:min(len(list), 100)] {
		names = append(names, clip(a.Name))
	}
	return names, nil
}

// applications are the programs that describe themselves.
func (b *bus) applications() ([]ref, error) {
	apps, _, err := b.children(ref{"org.a11y.atspi.Registry", rootPath}, nodeLimit)
	if err != nil {
		return nil, unavailable("ask which programs there are: %v", err)
	}
	return apps, nil
}

// scope finds the object that a walk begins at.
func (b *bus) scope(name string, pid int) (ref, error) {
	switch name {
	case "all":
		return ref{"org.a11y.atspi.Registry", rootPath}, nil
	case "pid":
		if pid <= 0 {
			return ref{}, bad("scope pid wants a pid")
		}
	case "", "focused":
	default:
		return ref{}, bad("scope %.100q: there are focused, pid and all", name)
	}
	apps, err := b.applications()
	if err != nil {
		return ref{}, err
	}
	// A program that hangs must not keep the others from being found.
	found := make([]*ref, len(apps))
	each(len(apps), func(i int) {
		app := apps[i]
		if name == "pid" {
			var owner uint32
			err := b.call(ref{"org.freedesktop.DBus", "/org/freedesktop/DBus"}, "org.freedesktop.DBus.GetConnectionUnixProcessID", &owner, app.Name)
			if err == nil && int(owner) == pid {
				found[i] = &app
			}
			return
		}
		windows, _, err := b.children(app, nodeLimit)
		if err != nil {
			return
		}
		for _, w := range windows {
			if states, err := b.states(w); err == nil && slices.Contains(states, "active") {
				found[i] = &w
				return
			}
		}
	})
	for _, r := range found {
		if r != nil {
			return *r, nil
		}
	}
	if name == "pid" {
		return ref{}, notThere("no program with pid %d describes itself to screen readers", pid)
	}
	return ref{}, notThere("no window that has the focus describes itself to screen readers; try the scope all")
}

// each calls f for 0 to n-1, several at a time.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, atOnce)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			f(i)
		})
	}
	wg.Wait()
}

// walk visits what is beneath root level by level, down to depth (negative: all
// of it). It says whether there is more than the limits let it see.
func (b *bus) walk(root ref, depth int) (*wire.AccessibilityNode, bool, error) {
	top, err := b.describe(root)
	if err != nil {
		return nil, false, explain(root, err)
	}
	if depth < 0 || depth > depthLimit {
		depth = depthLimit
	}
	type place struct {
		at   ref
		node *wire.AccessibilityNode
	}
	until := time.Now().Add(walkTime)
	truncated := false
	// A program may give the same object twice, and a tree that is none.
	seen := map[ref]bool{root: true}
	level := []place{{root, top}}
	for d := 0; d < depth && len(level) > 0; d++ {
		lists := make([][]ref, len(level))
		var mu sync.Mutex
		each(len(level), func(i int) {
			if time.Now().After(until) || b.ctx.Err() != nil {
				mu.Lock()
				truncated = true
				mu.Unlock()
				return
			}
			list, more, err := b.children(level[i].at, nodeLimit)
			if more || err != nil && !gone(err) {
				mu.Lock()
				truncated = true
				mu.Unlock()
			}
			lists[i] = list
		})
		var next []place
		var parents []*wire.AccessibilityNode
		for i, list := range lists {
			for _, r := range list {
				if seen[r] {
					continue
				}
				if len(seen) >= nodeLimit {
					truncated = true
					break
				}
				seen[r] = true
				next = append(next, place{at: r})
				parents = append(parents, level[i].node)
			}
		}
		each(len(next), func(i int) {
			if time.Now().After(until) || b.ctx.Err() != nil {
				mu.Lock()
				truncated = true
				mu.Unlock()
				return
			}
			next[i].node, _ = b.describe(next[i].at)
		})
		level = level[:0]
		for i, p := range next {
			if p.node != nil {
				parents[i].Children = append(parents[i].Children, p.node)
				level = append(level, p)
			}
		}
	}
	if err := b.ctx.Err(); err != nil {
		return nil, false, err
	}
	return top, truncated, nil
}

// gone says that an object has ended while it was asked about.
func gone(err error) bool {
	_, ok := errors.AsType[dbus.Error](err)
	return ok
}

func (b *bus) serveTree(r *http.Request) (any, error) {
	scope, pid, depth, err := parseTree(r.URL.Query())
	if err != nil {
		return nil, err
	}
	root, err := b.scope(scope, pid)
	if err != nil {
		return nil, err
	}
	top, truncated, err := b.walk(root, depth)
	if err != nil {
		return nil, err
	}
	return wire.AccessibilityTree{Root: top, Truncated: truncated}, nil
}

func parseTree(q url.Values) (scope string, pid, depth int, err error) {
	depth = -1
	for name, to := range map[string]*int{"pid": &pid, "maxDepth": &depth} {
		if v := q.Get(name); v != "" {
			if *to, err = strconv.Atoi(v); err != nil {
				return "", 0, 0, bad("%s is %.100q: want a whole number", name, v)
			}
		}
	}
	if depth < -1 {
		return "", 0, 0, bad("maxDepth %d: must be -1 (all) or more", depth)
	}
	return q.Get("scope"), pid, depth, nil
}

// matcher says which nodes a search is for.
func matcher(req *wire.AccessibilityFindRequest) (func(*wire.AccessibilityNode) bool, error) {
	plain := func(s string) string { return strings.NewReplacer("_", " ", "-", " ").Replace(strings.ToLower(s)) }
	name := func(string) bool { return true }
	switch {
	case len(req.Name) > textMost:
		return nil, bad("name is longer than %d bytes", textMost)
	case req.NameMatch == "exact":
		name = func(s string) bool { return s == req.Name }
	case req.NameMatch == "" || req.NameMatch == "substring":
		name = func(s string) bool { return strings.Contains(s, req.Name) }
	case req.NameMatch == "regex":
		pattern, err := regexp.Compile(req.Name)
		if err != nil {
			return nil, bad("name is no regular expression: %v", err)
		}
		name = pattern.MatchString
	default:
		return nil, bad("nameMatch %.100q: there are exact, substring and regex", req.NameMatch)
	}
	role := plain(req.Role)
	var states []string
	for _, s := range req.States {
		s = plain(s)
		if !slices.ContainsFunc(stateNames, func(known string) bool { return plain(known) == s }) {
			return nil, bad("state %.100q: there are %s", s, strings.Join(stateNames, ", "))
		}
		states = append(states, s)
	}
	return func(n *wire.AccessibilityNode) bool {
		if role != "" && plain(n.Role) != role || req.Name != "" && !name(n.Name) {
			return false
		}
		for _, want := range states {
			if !slices.ContainsFunc(n.States, func(has string) bool { return plain(has) == want }) {
				return false
			}
		}
		return true
	}, nil
}

func (b *bus) serveFind(req *wire.AccessibilityFindRequest) (any, error) {
	matches, err := matcher(req)
	if err != nil {
		return nil, err
	}
	limit := req.Limit
	switch {
	case limit < 0 || limit > matchLimit:
		return nil, bad("limit %d: must be from 1 to %d", limit, matchLimit)
	case limit == 0:
		limit = defaultLimit
	}
	root, err := b.scope(req.Scope, req.PID)
	if err != nil {
		return nil, err
	}
	top, truncated, err := b.walk(root, -1)
	if err != nil {
		return nil, err
	}
	found := wire.AccessibilityMatches{Matches: []*wire.AccessibilityNode{}, Truncated: truncated}
	var visit func(n *wire.AccessibilityNode)
	visit = func(n *wire.AccessibilityNode) {
		if matches(n) {
			if len(found.Matches) == limit {
				found.Truncated = true
				return
			}
			alone := *n
			alone.Children = []*wire.AccessibilityNode{}
			found.Matches = append(found.Matches, &alone)
		}
		for _, c := range n.Children {
			visit(c)
		}
	}
	visit(top)
	return found, nil
}

// node finds the object of a request, which must be there and have an interface.
func (b *bus) node(id string) (ref, []string, error) {
	r, err := parseID(id)
	if err != nil {
		return r, nil, err
	}
	var interfaces []string
	if err := b.call(r, accessible+".GetInterfaces", &interfaces); err != nil {
		return r, nil, explain(r, err)
	}
	return r, interfaces, nil
}

func (b *bus) focus(req *wire.AccessibilityNodeRequest) (any, error) {
	r, interfaces, err := b.node(req.ID)
	if err != nil {
		return nil, err
	}
	took := false
	if slices.Contains(interfaces, component) {
		if err := b.call(r, component+".GrabFocus", &took); err != nil {
			return nil, explain(r, err)
		}
	}
	if !took {
		return nil, bad("node %q does not take the focus", req.ID)
	}
	return struct{}{}, nil
}

func (b *bus) invoke(req *wire.AccessibilityNodeRequest) (any, error) {
	r, interfaces, err := b.node(req.ID)
	if err != nil {
		return nil, err
	}
	var names []string
	if slices.Contains(interfaces, "org.a11y.atspi.Action") {
		if names, err = b.actions(r); err != nil {
			return nil, explain(r, err)
		}
	}
	if len(names) == 0 {
		return nil, bad("node %q has no actions", req.ID)
	}
	i := 0
	if req.Action != "" {
		if i = slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, req.Action) }); i < 0 {
			return nil, bad("action %.100q: node %q has %s", req.Action, req.ID, strings.Join(names, ", "))
		}
	}
	done := false
	if err := b.call(r, "org.a11y.atspi.Action.DoAction", &done, int32(i)); err != nil {
		return nil, explain(r, err)
	}
	if !done {
		return nil, bad("node %q would not %s", req.ID, names[i])
	}
	return struct{}{}, nil
}

func (b *bus) setValue(req *wire.AccessibilityNodeRequest) (any, error) {
	r, interfaces, err := b.node(req.ID)
	if err != nil {
		return nil, err
	}
	switch {
	case slices.Contains(interfaces, "org.a11y.atspi.EditableText"):
		done := false
		if err := b.call(r, "org.a11y.atspi.EditableText.SetTextContents", &done, req.Value); err != nil {
			return nil, explain(r, err)
		}
		if !done {
			return nil, bad("node %q would not take the text: it may be read-only", req.ID)
		}
	case slices.Contains(interfaces, "org.a11y.atspi.Value"):
		v, err := strconv.ParseFloat(strings.TrimSpace(req.Value), 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, bad("value %.100q: node %q wants a number", req.Value, req.ID)
		}
		if err := b.call(r, "org.freedesktop.DBus.Properties.Set", nil, "org.a11y.atspi.Value", "CurrentValue", dbus.MakeVariant(v)); err != nil {
			return nil, explain(r, err)
		}
	default:
		return nil, bad("node %q has no value to set", req.ID)
	}
	return struct{}{}, nil
}
