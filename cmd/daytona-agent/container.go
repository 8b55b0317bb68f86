package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/boot"
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
	file := flags.String("config", "", "file with the JSON configuration")
	listen := flags.String("listen", "", "where to listen: unix:///PATH or tcp://ADDRESS:PORT")
	if err := flags.Parse(args); err != nil {
		return err
	}
	f, err := os.Open(*file)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, configLimit+1))
	f.Close()
	if err != nil {
		return err
	}
	if len(b) > configLimit {
		return fmt.Errorf("%s: more than %d bytes", *file, configLimit)
	}
	var config wire.ContainerConfig
	if err := json.Unmarshal(b, &config); err != nil {
		return fmt.Errorf("%s: %w", *file, err)
	}
	if w := config.Firewall; w != nil {
		var p network.Policy
		if err := json.Unmarshal(w.Policy, &p); err != nil {
			return fmt.Errorf("%s: the network policy: %w", *file, err)
		}
		if err := network.Confine(p, w.Denied, w.Resolvers); err != nil {
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
