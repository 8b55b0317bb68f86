// Package userspace starts the user-space network of a rootless sandbox in a process of its own,
// and talks to it afterwards.
//
// The process is separate because a sandbox sends it hostile packets: it has nothing of the
// engine's in its memory, and it dies with the sandbox, not with the engine. This package is the
// engine's side and the language between the two. It must not import the network stack, which
// only the process needs (package netstack).
package userspace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/daytona-go/daytona/internal/companion"
	"github.com/daytona-go/daytona/internal/network/guest"
	"github.com/daytona-go/daytona/internal/network/policy"
)

// Descriptors that the process inherits.
const (
	// DeviceFD carries the sandbox's packets.
	DeviceFD = 3
	// LifelineFD is readable or at its end when the process has to end, if Config.Lifeline says
	// that it is there.
	LifelineFD = 4
	// ControlFD is a listening Unix socket, if Config.Control says so.
	ControlFD = 5
)

// Config is what the process reads from its standard input.
type Config struct {
	Kind      string        `json:"kind"`
	Policy    policy.Policy `json:"policy"`
	Resolvers []netip.Addr  `json:"resolvers"`
	MaxFlows  int           `json:"maxFlows,omitempty"`
	// Control says that ControlFD is there.
	Control bool `json:"control,omitempty"`
	// Lifeline says that LifelineFD is there.
	Lifeline bool `json:"lifeline,omitempty"`
	// Debug makes the process log each refused connection.
	Debug bool `json:"debug,omitempty"`
}

// Request is a line to the control socket.
type Request struct {
	// Policy is to be put in force; without it the request only asks for Reply.Policy.
	Policy *policy.Policy `json:"policy,omitempty"`
}

// Reply is a line that the process answers, on the control socket or, once, on its standard
// output when it is ready.
type Reply struct {
	Error  string         `json:"error,omitempty"`
	Policy *policy.Policy `json:"policy,omitempty"` // the one in force
}

// MaxLine is the longest line of either kind.
const MaxLine = 256 << 10

// Options say what to start.
type Options struct {
	// Command is the program, daytona-net, and arguments if it takes any.
	Command []string
	// Device is the sandbox's packets and Kind their kind, from guest.Setup. Device stays the
	// caller's and is no longer needed once Start returns.
	Device *os.File
	Kind   string
	Policy policy.Policy
	// Resolvers answer the sandbox's DNS questions. Defaults to Resolvers().
	Resolvers []netip.Addr
	// MaxFlows is how many connections the sandbox may have at a time. Defaults to 1024.
	MaxFlows int
	// Lifeline ends the process when it is at its end: the read end of a pipe whose write end
	// the sandbox's first process holds, or a pidfd of that process. Without one the process
	// ends when the device does, that is with the sandbox's last process.
	Lifeline *os.File
	// Control is the path at which the process is to listen for SetPolicy. An old socket there
	// is replaced. Put it where only the engine gets, outside of the sandbox. Without it the
	// policy cannot be changed later.
	Control string
	// Stderr receives the process's log. Defaults to nowhere.
	Stderr *os.File
	// Start starts the prepared command, for a caller that wants it in a certain cgroup, say.
	// Defaults to (*exec.Cmd).Start.
	Start func(*exec.Cmd) error
}

const readyTimeout = 10 * time.Second

// Start starts the process and waits until it carries packets. The caller has to Wait for the
// command, and may Kill its process; neither is needed for the process to end with the sandbox.
func Start(ctx context.Context, o Options) (*exec.Cmd, error) {
	if len(o.Command) == 0 || o.Device == nil {
		return nil, errors.New("start the user-space network: no program or no device given")
	}
	if err := o.Policy.Validate(); err != nil {
		return nil, err
	}
	if o.Resolvers == nil {
		o.Resolvers = Resolvers()
	}
	config, err := json.Marshal(Config{
		Kind: o.Kind, Policy: o.Policy, Resolvers: o.Resolvers, MaxFlows: o.MaxFlows,
		Control: o.Control != "", Lifeline: o.Lifeline != nil,
	})
	if err != nil {
		return nil, err
	}
	files := []*os.File{o.Device, o.Lifeline}
	if o.Control != "" {
		listener, err := listen(o.Control)
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		files = append(files, listener)
	}
	cmd := exec.Command(o.Command[0], o.Command[1:]...)
	if o.Stderr != nil {
		cmd.Stderr = o.Stderr
	}
	cmd.Dir = "/"
	// Nothing of the engine's environment: it may hold secrets. The memory settings keep an idle
	// process small; the limit makes the collector work harder, it kills nothing.
	cmd.Env = []string{"GOGC=50", "GOMEMLIMIT=96MiB", "GOMAXPROCS=2"}
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = companion.Start(ctx, cmd, companion.Options{
		Start: o.Start, Config: config, MaxAnswer: MaxLine, Timeout: readyTimeout,
		Answer: func(line []byte) error {
			reply, err := parseReply(line)
			if err == nil && reply.Error != "" {
				err = errors.New(reply.Error)
			}
			return err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start the user-space network %s: %w", o.Command[0], err)
	}
	return cmd, nil
}

// listen makes the control socket.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make the network's control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the network's control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("make the network's control socket: %w", err)
	}
	return l.File()
}

func readReply(r io.Reader) (Reply, error) {
	line, err := companion.ReadAnswer(r, MaxLine)
	if err != nil {
		return Reply{}, err
	}
	return parseReply(line)
}

func parseReply(line []byte) (Reply, error) {
	var reply Reply
	if err := json.Unmarshal(line, &reply); err != nil {
		return Reply{}, fmt.Errorf("it answers nonsense: %w", err)
	}
	return reply, nil
}

// SetPolicy puts another policy in force, by way of the control socket, from any process of the
// user that started the network. Connections that it does not allow are cut before it returns.
func SetPolicy(ctx context.Context, control string, p policy.Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	_, err := ask(ctx, control, Request{Policy: &p})
	return err
}

// CurrentPolicy is the policy in force.
func CurrentPolicy(ctx context.Context, control string) (policy.Policy, error) {
	reply, err := ask(ctx, control, Request{})
	if err != nil {
		return policy.Policy{}, err
	}
	if reply.Policy == nil {
		return policy.Policy{}, errors.New("the user-space network does not say its policy")
	}
	return *reply.Policy, nil
}

func ask(ctx context.Context, control string, request Request) (Reply, error) {
	conn, err := (&net.Dialer{Timeout: readyTimeout}).DialContext(ctx, "unix", control)
	if err != nil {
		return Reply{}, fmt.Errorf("reach the user-space network (does the sandbox still run?): %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(readyTimeout))
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	line, err := json.Marshal(request)
	if err != nil {
		return Reply{}, err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return Reply{}, fmt.Errorf("talk to the user-space network: %w", err)
	}
	reply, err := readReply(conn)
	if err != nil {
		return Reply{}, fmt.Errorf("talk to the user-space network: %w", errors.Join(err, ctx.Err()))
	}
	if reply.Error != "" {
		return Reply{}, fmt.Errorf("the user-space network refuses: %s", reply.Error)
	}
	return reply, nil
}

// Resolvers are this host's nameservers. Any will do, also a loopback one, since it is the host
// that asks them. If there is none: 1.1.1.1 and 8.8.8.8.
func Resolvers() []netip.Addr {
	conf, err := os.ReadFile("/etc/resolv.conf")
	if found := policy.ParseNameservers(conf); err == nil && len(found) > 0 {
		return found[:min(len(found), policy.MaxResolvers)]
	}
	return policy.PublicResolvers()
}

// ResolvConf is the content of /etc/resolv.conf for a rootless sandbox with the policy.
func ResolvConf(p policy.Policy) string {
	if !p.DNS() {
		return ""
	}
	return policy.ResolvConf([]netip.Addr{guest.Resolver()})
}
