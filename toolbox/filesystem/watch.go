package filesystem

import (
	"context"
	"errors"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// defaultWindow and maxWindow are how long changes are collected for.
	defaultWindow = 50 * time.Millisecond
	maxWindow     = 10 * time.Second
	// maxExclude patterns, of at most maxPattern bytes.
	maxExclude = 64
	maxPattern = 256
)

// changes are those that a client has not been told of yet, in order, several of
// one file as one where that says the same. They do not grow without bound.
type changes struct {
	ready chan struct{} // has room for one: there is something
	ended chan struct{} // closed by end

	mu   sync.Mutex
	list []pending
	// last is where in the list the last change of a path is.
	last map[string]int
	lost *wire.WatchOverflow
	err  error
}

// pending is a change that may yet become one with a later one. Its type is empty
// if it came to nothing.
type pending struct {
	wire.FileChange
	replaced bool // a creation that may have been in the place of another file
}

func (c *changes) wake() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// add notes a change.
func (c *changes) add(change wire.FileChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.wake()
	if c.last == nil {
		c.last = map[string]int{}
	}
	if change.Type == wire.ChangeRename {
		c.rename(change)
	} else if i, ok := c.last[change.Path]; !ok || !merge(&c.list[i], change) {
		c.last[change.Path] = len(c.list)
		c.list = append(c.list, pending{FileChange: change})
	}
	if len(c.list) > maxChanges {
		c.drop("the client did not take them in time", change.Path)
	}
}

// rename notes a rename. Earlier changes keep their places before it.
func (c *changes) rename(change wire.FileChange) {
	if i, ok := c.last[change.OldPath]; ok && !change.IsDir && c.list[i].Type == wire.ChangeCreate && !c.list[i].replaced {
		// Nobody has heard of the old name: a file was written beside, and put in
		// its place.
		c.list[i].Type = ""
		delete(c.last, change.OldPath)
		if i, ok := c.last[change.Path]; ok && c.list[i].Type == wire.ChangeCreate {
			return // nobody has heard of what was there, either
		}
		change.Type, change.OldPath = wire.ChangeCreate, ""
		c.last[change.Path] = len(c.list)
		c.list = append(c.list, pending{change, true})
		return
	}
	if change.IsDir {
		clear(c.last) // paths mean something else from here on
	}
	delete(c.last, change.OldPath)
	c.last[change.Path] = len(c.list)
	c.list = append(c.list, pending{FileChange: change})
}

// merge adds a change to an earlier one of the same path, if both are one.
func merge(earlier *pending, change wire.FileChange) bool {
	switch was := earlier.Type; change.Type {
	case wire.ChangeCreate:
		return was == wire.ChangeCreate // seen twice, by watch and by scan
	case wire.ChangeWrite:
		if was == wire.ChangeAttributes {
			earlier.Type = wire.ChangeWrite
		}
		return was == wire.ChangeCreate || was == wire.ChangeWrite || was == wire.ChangeAttributes
	case wire.ChangeAttributes:
		return was == wire.ChangeCreate || was == wire.ChangeWrite || was == wire.ChangeAttributes
	case wire.ChangeRemove:
		switch was {
		case wire.ChangeCreate:
			earlier.Type = "" // never there
			if earlier.replaced {
				earlier.Type = wire.ChangeRemove
			}
			return true
		case wire.ChangeWrite, wire.ChangeAttributes:
			earlier.Type = wire.ChangeRemove
			return true
		}
	}
	return false
}

// overflow notes that changes below a path were lost; what has not been told is
// with them.
func (c *changes) overflow(below, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.wake()
	c.drop(reason, below)
}

// drop forgets all changes. The caller holds c.mu.
func (c *changes) drop(reason, below string) {
	for _, change := range c.list {
		below = common(below, change.Path)
		if change.OldPath != "" {
			below = common(below, change.OldPath)
		}
	}
	if c.lost != nil {
		below = common(below, c.lost.Path)
	}
	c.list, c.lost = nil, &wire.WatchOverflow{Path: below, Reason: reason}
	clear(c.last)
}

// common is the deepest directory that both paths are below.
func common(a, b string) string {
	for a != b && !strings.HasPrefix(b, strings.TrimSuffix(a, "/")+"/") {
		a = path.Dir(a)
	}
	return a
}

// end says that there is nothing more to come.
func (c *changes) end(err error) {
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	close(c.ended)
}

// take returns what there is, and takes it out.
func (c *changes) take() (list []wire.FileChange, lost *wire.WatchOverflow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range c.list {
		if change.Type != "" {
			list = append(list, change.FileChange)
		}
	}
	lost = c.lost
	c.list, c.lost = nil, nil
	clear(c.last)
	return list, lost
}

// watch answers with a stream; see wire.WatchPath.
func (s *Service) watch(w http.ResponseWriter, r *http.Request) error {
	p, err := s.queryPath(r, "path")
	if err != nil {
		return err
	}
	query := r.URL.Query()
	recursive := true
	if query.Has("recursive") {
		if recursive, err = queryBool(r, "recursive"); err != nil {
			return err
		}
	}
	window := defaultWindow
	if v := query.Get("window"); v != "" {
		n, err := strconv.Atoi(v)
		if window = time.Duration(n) * time.Millisecond; err != nil || n < 1 || window > maxWindow {
			return invalid("window %q: give a number of milliseconds from 1 to %d", clip(v), maxWindow.Milliseconds())
		}
	}
	exclude := query["exclude"]
	if len(exclude) > maxExclude {
		return invalid("exclude: %d patterns, at most %d are possible", len(exclude), maxExclude)
	}
	for _, pattern := range exclude {
		if _, err := path.Match(pattern, "x"); err != nil || pattern == "" || len(pattern) > maxPattern || strings.Contains(pattern, "/") {
			return invalid("exclude %q: give a shell pattern for names, such as *.tmp", clip(pattern))
		}
	}
	ctx, cancel := context.WithCancel(r.Context())
	watcher, err := s.newWatcher(ctx, p, recursive, exclude)
	if err != nil {
		cancel()
		if limit, ok := errors.AsType[*errWatchLimit](err); ok {
			return &failure{http.StatusTooManyRequests, wire.CodeTooManyWatches, "watch " + p + ": " + limit.reason}
		}
		return err
	}
	directories := len(watcher.dirs)
	go watcher.run(ctx)
	defer func() {
		cancel()
		<-watcher.changes.ended
		watcher.close()
	}()
	out := wire.NewEventWriter(w)
	if out.Send(wire.EventReady, "", wire.WatchReady{Path: p, Directories: directories}) != nil {
		return nil
	}
	s.stream(out, &watcher.changes, window)
	return nil
}

// stream sends changes until the client or the watch goes away.
func (s *Service) stream(out *wire.EventWriter, c *changes, window time.Duration) {
	send := func() error {
		list, lost := c.take()
		// What was lost comes first: what is left happened after.
		if lost != nil {
			if err := out.Send(wire.EventOverflow, "", lost); err != nil {
				return err
			}
		}
		if len(list) > 0 {
			return out.Send(wire.EventChanges, "", wire.FileChanges{Events: list})
		}
		return nil
	}
	keep := time.NewTicker(wire.EventKeepAlive)
	defer keep.Stop()
	for {
		select {
		case <-c.ended:
		case <-keep.C:
			if out.KeepAlive() != nil {
				return
			}
			continue
		case <-c.ready:
			collect := time.NewTimer(window)
			select {
			case <-collect.C:
			case <-c.ended:
			}
			collect.Stop()
			if send() != nil {
				return
			}
			continue
		}
		if send() == nil && !errors.Is(c.err, context.Canceled) {
			_, code, message := describe(c.err)
			if errors.Is(c.err, errWatchEnd) {
				code = wire.CodeFileNotFound
			}
			_ = out.Send(wire.EventEnd, "", wire.WatchEnd{Code: code, Message: message})
		}
		return
	}
}
