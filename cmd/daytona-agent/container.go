package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/internal/link"
	"github.com/daytona-go/daytona/internal/network"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// container returns only if something went wrong, with an exit code.
func container(args []string) int {
	err := contain(args)
	if _, ok := errors.AsType[userError](err); ok {
		fail(err)
		return wire.ContainerExitUser
	}
	return fail(err)
}

// userError says that the container lacks the user of the sandbox.
type userError struct{ error }

// contain does in a container what is still to be done there before anything
// of the sandbox runs, gives up the rights that only that takes, and becomes
// the agent.
func contain(args []string) error {
	flags := flag.NewFlagSet("container", flag.ContinueOnError)
	file := flags.String("config", "", "file with the JSON configuration; defaults to standard input")
	listen := flags.String("listen", "", "where to listen: unix:///PATH or tcp://ADDRESS:PORT")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config, err := readContainerConfig(*file)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if w := config.Firewall; w != nil {
		var p network.Policy
		if err := json.Unmarshal(w.Policy, &p); err != nil {
			return fmt.Errorf("the network policy: %w", err)
		}
		var port uint16
		if config.Agent.Key != "" {
			port = wire.AgentPort
		}
		if err := network.Confine(p, w.Denied, w.Resolvers, port); err != nil {
			return err
		}
	}
	if u := config.AddUser; u != nil {
		if err := boot.AddUser(boot.User{Name: u.Name, UID: u.UID, GID: u.GID, Home: u.Home, Fixed: u.Fixed}); err != nil {
			return fmt.Errorf("add user %s: %w", u.Name, err)
		}
	}
	for name, content := range config.Files {
		if err := boot.WriteFile(boot.File{Path: name, Mode: 0o644, Content: content}); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	if _, err := account.Lookup(config.Agent.User); err != nil {
		return userError{err}
	}
	if err := boot.DropCapabilities(unix.CAP_NET_ADMIN, unix.CAP_SETPCAP); err != nil {
		return err
	}
	// The agent reads its part from memory and closes it: programs of the
	// sandbox must not find it.
	body, err := json.Marshal(config.Agent)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("config", 0)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Write(fd, body); err != nil {
		return err
	}
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return err
	}
	err = unix.Exec("/proc/self/exe", []string{"daytona-agent", "serve", "--config-fd", strconv.Itoa(fd), "--listen", *listen}, os.Environ())
	return fmt.Errorf("execute the agent: %w", err)
}

// readContainerConfig takes the configuration from a file that only the host can
// write, or from standard input, which nothing of the sandbox can have read,
// written or found later, and closes that.
func readContainerConfig(file string) (*wire.ContainerConfig, error) {
	in := os.Stdin
	if file != "" {
		var err error
		if in, err = os.Open(file); err != nil {
			return nil, err
		}
		defer in.Close()
	}
	config := &wire.ContainerConfig{}
	// The other end of the input stays open: it is a value that ends it.
	limited := &io.LimitedReader{R: in, N: configLimit}
	if err := json.NewDecoder(limited).Decode(config); err != nil {
		if limited.N == 0 {
			return nil, fmt.Errorf("more than %d bytes", configLimit)
		}
		return nil, err
	}
	if file != "" {
		return config, nil
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(null)
	return config, unix.Dup3(null, 0, 0)
}

// relay carries connections to the agent's socket over standard input and
// output. The engine runs it in the container with all that the container was
// started with: it gives up first what the agent has given up.
func relay(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("relay: give the path of the agent's socket, not %q", args)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the relay untraceable: %w", err)
	}
	if err := boot.DropCapabilities(unix.CAP_NET_ADMIN, unix.CAP_SETPCAP); err != nil {
		return err
	}
	tune()
	// When all processes are told to end, what they still have to say comes
	// through here.
	drain := make(chan struct{})
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	go func() {
		<-terminated
		close(drain)
	}()
	// Reading must end when the stream is closed.
	for _, fd := range []int{0, 1} {
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
	}
	stream := stdio{os.NewFile(0, "standard input"), os.NewFile(1, "standard output")}
	return link.Relay(stream, func() (net.Conn, error) { return net.DialTimeout("unix", args[0], dialTimeout) }, drain)
}

// dialTimeout is how long the agent may take to accept a connection.
const dialTimeout = 20 * time.Second

// stdio is standard input and output as one stream.
type stdio struct{ in, out *os.File }

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s stdio) Close() error                { return errors.Join(s.in.Close(), s.out.Close()) }
