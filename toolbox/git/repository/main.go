package repository

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Request is what a helper reads from its standard input.
type Request struct {
	Op string `json:"op"`
	// Dir is the repository's directory, absolute.
	Dir string `json:"dir"`
	// WorkDir is what a relative path of a remote is relative to.
	WorkDir string `json:"workDir"`
	// User is whom the helper runs as.
	User User `json:"user"`
	// Limit is how many commits a history has.
	Limit int `json:"limit,omitempty"`
	// Body is that of the HTTP request.
	Body json.RawMessage `json:"body,omitempty"`
}

// Answer is the first line that a helper writes to its standard output; the
// body of a success follows.
type Answer struct {
	Status  int    `json:"status"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	// Body says that there is one.
	Body bool `json:"body,omitempty"`
}

// maxRequest bounds a request, in bytes.
const maxRequest = 64 << 20

// Main is the helper: it answers one request.
func Main([]string) int {
	// The user's other programs are not to read credentials from its memory.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	var q Request
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxRequest)).Decode(&q); err != nil {
		fmt.Fprintln(os.Stderr, "git helper: no request:", err)
		return 1
	}
	if home := os.Getenv("HOME"); strings.HasPrefix(home, "/") {
		q.User.Home = home // git's home is the variable's
	}
	s := &session{user: q.User}
	out := &answerer{w: bufio.NewWriterSize(os.Stdout, 64<<10)}
	code := 0
	if err := serve(ctx, &q, s, out); err != nil {
		code = out.fail(s, err)
	}
	if err := out.w.Flush(); err != nil {
		return 1 // the agent is gone, or its client
	}
	return code
}

// answerer writes an answer.
type answerer struct {
	w     *bufio.Writer
	begun bool
}

func (a *answerer) head(h Answer) error {
	a.begun = true
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = a.w.Write(append(b, '\n'))
	return err
}

func (a *answerer) done(status int) error { return a.head(Answer{Status: status}) }

func (a *answerer) json(status int, v any) error {
	if err := a.head(Answer{Status: status, Body: true}); err != nil {
		return err
	}
	return json.NewEncoder(a.w).Encode(v)
}

// fail returns the exit code.
func (a *answerer) fail(s *session, err error) int {
	if a.begun {
		// Too late for a status: the body ends in the middle.
		fmt.Fprintln(os.Stderr, "git helper:", s.scrub(err.Error()))
		return 1
	}
	err = fileError(err)
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Status: 500, Message: err.Error()}
	}
	_ = a.head(Answer{Status: e.Status, Code: e.Code, Message: s.scrub(clipLong(e.Message))})
	return 0
}

// serve carries out a request.
func serve(ctx context.Context, q *Request, s *session, out *answerer) error {
	body := func(v any) error {
		if err := json.Unmarshal(q.Body, v); err != nil {
			return failf(400, wire.CodeInvalidBody, "invalid body request: %v", err)
		}
		return nil
	}
	// What needs no repository.
	switch q.Op {
	case "clone":
		var b wire.GitCloneRequest
		if err := body(&b); err != nil {
			return err
		}
		b.Path = q.Dir
		s.username, s.password, s.insecure = b.Username, b.Password, b.InsecureSkipTLS
		s.secret(b.Password)
		useTransports(q.User)
		answer, err := Clone(ctx, &b, q.WorkDir, s)
		if err != nil {
			return err
		}
		return out.json(200, answer)
	case "init":
		var b wire.GitInitRequest
		if err := body(&b); err != nil {
			return err
		}
		if err := Init(q.Dir, b.InitialBranch, b.Bare, q.User); err != nil {
			return err
		}
		return out.done(201)
	case "get-config":
		var b wire.GitConfigRequest
		if err := body(&b); err != nil {
			return err
		}
		v, err := GetConfig(b.Scope, q.Dir, b.Key, q.User)
		if err != nil {
			return err
		}
		return out.json(200, wire.GitConfigResponse{Value: v})
	case "set-config":
		var b wire.GitConfigRequest
		if err := body(&b); err != nil {
			return err
		}
		if err := SetConfig(b.Scope, q.Dir, q.User, [2]string{b.Key, b.Value}); err != nil {
			return err
		}
		return out.done(200)
	case "configure-user":
		var b wire.GitConfigureUserRequest
		if err := body(&b); err != nil {
			return err
		}
		if strings.TrimSpace(b.Name) == "" || strings.TrimSpace(b.Email) == "" {
			return invalid("name and email must not be empty")
		}
		if err := SetConfig(b.Scope, q.Dir, q.User, [2]string{"user.name", b.Name}, [2]string{"user.email", b.Email}); err != nil {
			return err
		}
		return out.done(200)
	case "authenticate":
		var b wire.GitAuthenticateRequest
		if err := body(&b); err != nil {
			return err
		}
		s.secret(b.Password)
		if err := Authenticate(&b, q.User); err != nil {
			return err
		}
		return out.done(200)
	}

	r, err := Open(q.Dir, q.User)
	if err != nil {
		return err
	}
	defer r.Close()
	s.config = r.config
	switch q.Op {
	case "status":
		st, err := r.Status()
		if err != nil {
			return err
		}
		return out.json(200, st)
	case "history":
		return r.writeHistory(q.Limit, out)
	case "branches":
		list, err := r.Branches()
		if err != nil {
			return err
		}
		return out.json(200, list)
	case "remotes":
		return out.json(200, r.Remotes())
	case "add":
		var b wire.GitAddRequest
		if err := body(&b); err != nil {
			return err
		}
		if err := r.Add(b.Files); err != nil {
			return err
		}
		return out.done(200)
	case "commit":
		var b wire.GitCommitRequest
		if err := body(&b); err != nil {
			return err
		}
		hash, err := r.Commit(&b)
		if err != nil {
			return err
		}
		return out.json(200, wire.GitCommitResponse{Hash: hash})
	case "create-branch", "delete-branch":
		var b wire.GitBranchRequest
		if err := body(&b); err != nil {
			return err
		}
		if q.Op == "create-branch" {
			if err := r.CreateBranch(b.Name); err != nil {
				return err
			}
			return out.done(201)
		}
		if err := r.DeleteBranch(b.Name); err != nil {
			return err
		}
		return out.done(204)
	case "checkout":
		var b wire.GitCheckoutRequest
		if err := body(&b); err != nil {
			return err
		}
		if err := r.Checkout(b.Branch); err != nil {
			return err
		}
		return out.done(200)
	case "reset":
		var b wire.GitResetRequest
		if err := body(&b); err != nil {
			return err
		}
		if err := r.Reset(b.Mode, b.Target, b.Files); err != nil {
			return err
		}
		return out.done(200)
	case "restore":
		var b wire.GitRestoreRequest
		if err := body(&b); err != nil {
			return err
		}
		if err := r.Restore(b.Files, b.Source, b.Staged, b.Worktree); err != nil {
			return err
		}
		return out.done(200)
	case "push", "pull":
		var b wire.GitSyncRequest
		if err := body(&b); err != nil {
			return err
		}
		s.username, s.password = b.Username, b.Password
		s.secret(b.Password)
		useTransports(q.User)
		if q.Op == "push" {
			err = r.Push(ctx, &b, s)
		} else {
			err = r.Pull(ctx, &b, s)
		}
		if err != nil {
			return err
		}
		return out.done(200)
	case "add-remote":
		var b wire.GitAddRemoteRequest
		if err := body(&b); err != nil {
			return err
		}
		useTransports(q.User)
		if err := r.AddRemote(ctx, &b, s); err != nil {
			return err
		}
		return out.done(201)
	}
	return fmt.Errorf("there is no operation %q", q.Op)
}

// writeHistory answers with commits one by one: there may be a million.
func (r *Repository) writeHistory(limit int, out *answerer) error {
	n := 0
	enc := json.NewEncoder(out.w)
	begin := func() error {
		if err := out.head(Answer{Status: 200, Body: true}); err != nil {
			return err
		}
		_, err := io.WriteString(out.w, "[")
		return err
	}
	err := r.History(limit, func(c *wire.GitCommitInfo) error {
		if n == 0 {
			if err := begin(); err != nil {
				return err
			}
		} else if _, err := io.WriteString(out.w, ","); err != nil {
			return err
		}
		n++
		return enc.Encode(c)
	})
	if err == nil && n == 0 {
		err = begin()
	}
	if err == nil {
		_, err = io.WriteString(out.w, "]\n")
	}
	return err
}
