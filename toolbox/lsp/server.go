package lsp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sourcegraph/jsonrpc2"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// crashLimit is how often a server is started again within crashWindow.
	crashLimit  = 5
	crashWindow = 3 * time.Minute
	// documentLimit is how many documents clients may have open in one server,
	// besides impliedLimit that were opened because they were asked about.
	documentLimit = 256
	impliedLimit  = 64
	// textLimit bounds a document, textsLimit all unsaved ones of one server,
	// in bytes.
	textLimit  = 4 << 20
	textsLimit = 16 << 20
)

// key is what a server is known by.
type key struct{ language, dir string }

// lock is a mutex that can be waited for with a context.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) release() { <-l }

// server is a language server from its start to its stop, through however many
// runs of its program.
type server struct {
	service *Service
	key     key
	options wire.LSPStartRequest
	// ctx ends when the server is stopped.
	ctx  context.Context
	stop context.CancelFunc

	// running guards what follows; it is held while the program starts.
	running lock
	current *connection
	ready   bool // it has been ready once
	crashes []time.Time
	last    string // why the last run ended

	// open guards the documents, and is held while the server is told of them.
	open      lock
	documents map[string]*document // by path
	clock     uint64

	// applied is how the server may be forgotten: once.
	ended sync.Once
}

// document is one that the server has, or is to have, open.
type document struct {
	path, uri string
	// conn is the run that it is open in, with a version and, if it is as on
	// disk, the state of the file that was read.
	conn    *connection
	version int
	state   fileState
	// text is what a client says the content is; nil if it is that of the file.
	text *string
	told bool // text has been sent
	// implied says that no client has opened it, used when it was needed last.
	implied bool
	used    uint64
}

// fileState is by what a file is known to be as it was.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// apiError is an error with what it is on the wire.
type apiError struct {
	status int
	code   string
	err    error
}

func (e *apiError) Error() string { return e.err.Error() }
func (e *apiError) Unwrap() error { return e.err }

func refuse(status int, code, format string, args ...any) error {
	return &apiError{status, code, fmt.Errorf(format, args...)}
}

var errNotStarted = refuse(http.StatusBadRequest, wire.CodeLSPNotStarted, "server not initialized: start the language server of this language and project first")

// connection returns the present run; it starts the program again if that has
// ended.
func (s *server) connection(ctx context.Context) (*connection, error) {
	if err := s.running.acquire(ctx); err != nil {
		return nil, err
	}
	defer s.running.release()
	if s.ctx.Err() != nil {
		return nil, errNotStarted
	}
	if c := s.current; c != nil {
		if c.alive() {
			return c, nil
		}
		<-c.done
		s.current, s.last = nil, c.reason
		s.service.logger.Warn("a language server has ended", "language", s.key.language, "project", s.key.dir, "program", c.program, "why", c.reason)
		now := time.Now()
		s.crashes = append(slices.DeleteFunc(s.crashes, func(t time.Time) bool { return now.Sub(t) > crashWindow }), now)
	}
	if len(s.crashes) > crashLimit {
		return nil, refuse(http.StatusInternalServerError, wire.CodeLSPFailed, "the language server ended %d times within %v and is not started again; the last time it %s: start it anew", len(s.crashes), crashWindow, s.last)
	}
	// Not with the client's context: whoever comes next wants it, too.
	c, err := s.launch()
	if err != nil {
		if s.ready && s.ctx.Err() == nil {
			s.crashes, s.last = append(s.crashes, time.Now()), err.Error()
		}
		return nil, err
	}
	s.current, s.ready = c, true
	return c, nil
}

// launch starts the program and introduces the agent and the documents.
func (s *server) launch() (*connection, error) {
	o, opts := s.service.options, s.options
	chosen, err := program(o.Spawner, s.key.language, s.key.dir, opts.Command, opts.Envs)
	if err != nil {
		return nil, startFailed(err)
	}
	argv, initial := chosen.argv, opts.InitializationOptions
	if initial == nil && chosen.options != "" {
		initial = json.RawMessage(chosen.options)
	}
	c, err := launch(o.Spawner, s.service.logger, argv, s.key.dir, opts.Envs, opts.Settings, o.WriteTimeout)
	if err != nil {
		return nil, startFailed(err)
	}
	failed := func(what string, err error) error {
		if s.ctx.Err() != nil {
			c.end("was stopped")
			return errNotStarted
		}
		if err != errLost {
			c.end(fmt.Sprintf("%s: %v", what, err))
		}
		<-c.done
		return refuse(http.StatusInternalServerError, wire.CodeLSPFailed, "start language server %q: it %s", strings.Join(argv, " "), c.reason)
	}
	raw, err := c.request(s.ctx, "initialize", initializeParams(s.key.dir, initial), o.StartTimeout)
	if err != nil {
		return nil, failed("was not initialized", err)
	}
	var answer struct {
		Capabilities capabilities `json:"capabilities"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, failed("gave no capabilities", err)
	}
	c.can = answer.Capabilities
	if err := c.notify("initialized", object{}); err != nil {
		return nil, failed("was not initialized", err)
	}
	if len(opts.Settings) > 0 {
		if err := c.notify("workspace/didChangeConfiguration", object{"settings": opts.Settings}); err != nil {
			return nil, failed("was not configured", err)
		}
	}
	if err := s.reopen(c); err != nil {
		return nil, failed("was not given the open documents", err)
	}
	return c, nil
}

// reopen opens what clients have open in a new run. A file that is not there
// any more is closed.
func (s *server) reopen(c *connection) error {
	if err := s.open.acquire(s.ctx); err != nil {
		return err
	}
	defer s.open.release()
	for path, d := range s.documents {
		if d.implied {
			delete(s.documents, path)
			continue
		}
		if err := s.tell(c, d); err == errLost {
			return err
		} else if err != nil {
			delete(s.documents, path)
		}
	}
	return nil
}

// end stops the server.
func (s *server) end() {
	s.ended.Do(func() {
		s.service.forget(s)
		s.stop()
		// Whoever starts the program notices that.
		_ = s.running.acquire(context.Background())
		defer s.running.release()
		if s.current != nil {
			s.current.shutdown()
			s.current = nil
		}
	})
}

// with does f with a run of the server in which a document is open and up to
// date. If the program ends meanwhile, it is started again and f is repeated,
// once. A path of "" is no document.
func (s *server) with(ctx context.Context, path string, f func(c *connection, uri string) error) error {
	for again := false; ; again = true {
		c, err := s.connection(ctx)
		if err != nil {
			return err
		}
		var uri string
		if path != "" {
			uri, err = s.document(ctx, c, path)
		}
		if err == nil {
			err = f(c, uri)
		}
		if !errors.Is(err, errLost) {
			return err
		}
		<-c.done
		if s.ctx.Err() != nil {
			return errNotStarted
		}
		if again {
			return refuse(http.StatusServiceUnavailable, wire.CodeLSPFailed, "the language server ended twice over this; it %s", c.reason)
		}
	}
}

// document makes a document known to c as it is now.
func (s *server) document(ctx context.Context, c *connection, path string) (uri string, err error) {
	if err := s.open.acquire(ctx); err != nil {
		return "", err
	}
	defer s.open.release()
	d := s.documents[path]
	if d == nil {
		d = &document{path: path, uri: fileURI(path), implied: true}
	}
	s.clock++
	d.used = s.clock
	return d.uri, s.put(c, d)
}

// put tells c of a document and keeps it, unless that fails. The caller holds
// open.
func (s *server) put(c *connection, d *document) error {
	if err := s.tell(c, d); err != nil {
		if err != errLost {
			s.drop(c, d)
		}
		return err
	}
	s.documents[d.path] = d
	if d.implied {
		var oldest *document
		n := 0
		for _, other := range s.documents {
			if other.implied {
				if n++; oldest == nil || other.used < oldest.used {
					oldest = other
				}
			}
		}
		if n > impliedLimit {
			s.drop(c, oldest)
		}
	}
	return nil
}

// drop closes a document. The caller holds open.
func (s *server) drop(c *connection, d *document) {
	delete(s.documents, d.path)
	if d.conn == c && c != nil {
		_ = c.notify("textDocument/didClose", object{"textDocument": object{"uri": d.uri}})
		c.forget(d.path)
	}
	d.conn = nil
}

// tell opens a document in c, or says what has changed since it last did. The
// caller holds open.
func (s *server) tell(c *connection, d *document) error {
	var text string
	if d.text != nil {
		if d.conn == c && d.told {
			return nil
		}
		text = *d.text
	} else {
		known := &d.state
		if d.conn != c {
			known = nil
		}
		content, state, err := s.service.read(d.path, known)
		if err != nil || content == nil {
			return err
		}
		d.state, text = state, string(content)
	}
	d.version++
	c.expect(d.path, d.version) // before the server can speak
	if d.conn != c {
		if err := c.notify("textDocument/didOpen", object{"textDocument": object{
			"uri": d.uri, "languageId": documentLanguage(s.key.language, d.path), "version": d.version, "text": text,
		}}); err != nil {
			return err
		}
	} else {
		if err := c.notify("textDocument/didChange", object{
			"textDocument":   object{"uri": d.uri, "version": d.version},
			"contentChanges": []object{{"text": text}},
		}); err != nil {
			return err
		}
		if d.text == nil && c.can.saves() {
			if err := c.notify("textDocument/didSave", object{"textDocument": object{"uri": d.uri}, "text": text}); err != nil {
				return err
			}
		}
	}
	d.conn, d.told = c, true
	return nil
}

// edit opens a document for a client: with a text, or with that of the file.
func (s *server) edit(ctx context.Context, path string, text *string) error {
	return s.with(ctx, "", func(c *connection, _ string) error {
		if err := s.open.acquire(ctx); err != nil {
			return err
		}
		defer s.open.release()
		d := s.documents[path]
		if d == nil || d.implied {
			if n := s.count(func(d *document) int {
				if d.implied {
					return 0
				}
				return 1
			}); n >= documentLimit {
				return refuse(http.StatusTooManyRequests, "", "%d documents are open: close some", n)
			}
		}
		if text != nil {
			if len(*text) > textLimit {
				return refuse(http.StatusRequestEntityTooLarge, "", "text of %d bytes: at most %d", len(*text), textLimit)
			}
			if n := s.count(func(d *document) int {
				if d.text == nil || d.path == path {
					return 0
				}
				return len(*d.text)
			}); n+len(*text) > textsLimit {
				return refuse(http.StatusRequestEntityTooLarge, "", "all unsaved documents together are more than %d bytes: close some", textsLimit)
			}
		}
		if d == nil {
			d = &document{path: path, uri: fileURI(path)}
		}
		if d.text != nil && text == nil {
			d.state = fileState{} // what the server has is not the file's
		}
		d.implied, d.text, d.told = false, text, false
		return s.put(c, d)
	})
}

// count adds up what f says of each document. The caller holds open.
func (s *server) count(f func(*document) int) int {
	n := 0
	for _, d := range s.documents {
		n += f(d)
	}
	return n
}

// close closes a document; nothing happens if it is not open.
func (s *server) close(ctx context.Context, path string) error {
	if err := s.open.acquire(ctx); err != nil {
		return err
	}
	defer s.open.release()
	if d := s.documents[path]; d != nil {
		s.drop(d.conn, d)
	}
	return nil
}

// ask asks the server something about a document, or about nothing if path is
// "". The server must have the capability.
func (s *server) ask(ctx context.Context, path, capability, method string, params func(uri string) object) (raw json.RawMessage, uri string, err error) {
	err = s.with(ctx, path, func(c *connection, document string) error {
		if !c.can.has(capability) {
			return s.cannot(c, method)
		}
		uri = document
		var err error
		raw, err = s.repeat(ctx, c, method, params(document))
		return err
	})
	return raw, uri, err
}

func (s *server) cannot(c *connection, method string) error {
	return refuse(http.StatusNotImplemented, wire.CodeUnsupported, "the language server %s does not have %s: another one may", filepath.Base(c.program), method)
}

const (
	codeContentModified = -32801
	codeServerCancelled = -32802
)

// repeat asks, and again where the server says that it had to start over.
func (s *server) repeat(ctx context.Context, c *connection, method string, params object) (json.RawMessage, error) {
	for again := 0; ; again++ {
		raw, err := c.request(ctx, method, params, s.service.options.RequestTimeout)
		if e, ok := errors.AsType[*jsonrpc2.Error](err); ok && again < 3 && (e.Code == codeContentModified || e.Code == codeServerCancelled) {
			select {
			case <-time.After(100 * time.Millisecond << again):
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return raw, err
	}
}

// startFailed words an error of the program's start.
func startFailed(err error) error {
	if _, ok := errors.AsType[unknownLanguage](err); ok {
		return &apiError{http.StatusBadRequest, "", err}
	}
	if _, ok := errors.AsType[*process.DirError](err); ok {
		return &apiError{http.StatusBadRequest, "", err}
	}
	code := wire.CodeLSPFailed
	if errors.Is(err, fs.ErrNotExist) {
		code = wire.CodeLSPNotFound
	}
	return &apiError{http.StatusInternalServerError, code, err}
}

// read reads a file with the sandbox's user's rights. If it is as it was in
// the state that is known, content is nil.
func (s *Service) read(path string, known *fileState) (content []byte, state fileState, err error) {
	err = s.options.Spawner.Account().Do(func() error {
		how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
		var fd int
		var err error
		for {
			if fd, err = unix.Openat2(unix.AT_FDCWD, path, &how); err != unix.EINTR {
				break
			}
		}
		if err == unix.ENOSYS || err == unix.EPERM { // before Linux 5.6
			fd, err = unix.Open(path, int(how.Flags)|unix.O_NOFOLLOW, 0)
		}
		if err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		var st unix.Stat_t
		var vfs unix.Statfs_t
		if err := unix.Fstat(fd, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		if err := unix.Fstatfs(fd, &vfs); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || vfs.Type == unix.PROC_SUPER_MAGIC || vfs.Type == unix.SYSFS_MAGIC {
			return refuse(http.StatusBadRequest, "", "%s is not a regular file", path)
		}
		state = fileState{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
		if known != nil && *known == state {
			return nil
		}
		if content, err = io.ReadAll(io.LimitReader(f, textLimit+1)); err != nil {
			return err
		}
		if len(content) > textLimit {
			content = nil
			return refuse(http.StatusRequestEntityTooLarge, "", "%s has more than %d bytes", path, textLimit)
		}
		if content == nil {
			content = []byte{}
		}
		return nil
	})
	if err != nil {
		return nil, fileState{}, fileError(err)
	}
	if !utf8.Valid(content) {
		content = bytes.ToValidUTF8(content, []byte("\uFFFD"))
	}
	return content, state, nil
}

// fileError words an error about a file. Status 400 is what the API has.
func fileError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return &apiError{http.StatusBadRequest, wire.CodeFileNotFound, err}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ELOOP):
		return &apiError{http.StatusBadRequest, wire.CodeFileAccessDenied, err}
	}
	if _, ok := errors.AsType[*apiError](err); ok {
		return err
	}
	return &apiError{http.StatusBadRequest, wire.CodeFileReadFailed, err}
}
