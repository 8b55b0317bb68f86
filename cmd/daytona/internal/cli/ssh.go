package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/daytona-go/daytona"
)

// sshDomain is behind the names of sandboxes where OpenSSH wants the name of a
// host: no real one has it.
const sshDomain = ".daytona"

// sshWithValue are the options of ssh(1) that take a value.
const sshWithValue = "BbcDEeFIiJLlmOoPpQRSWw"

// sshLine is a command line of "daytona ssh", taken apart.
type sshLine struct {
	own     []string // flags of ours
	options []string // those of ssh
	name    string
	command []string

	agent   bool // -A
	version bool // -V
}

// parseSSH takes the arguments as ssh(1) does, but for long options, which are
// ours. withValue says which of those take their value from the next argument.
func parseSSH(args []string, withValue func(name string) bool) (sshLine, error) {
	var l sshLine
	next := func(i *int, option string) error {
		if *i++; *i >= len(args) {
			return fmt.Errorf("%s needs a value", option)
		}
		return nil
	}
	ended := false // by "--"
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--" && !ended:
			ended = true
		case !ended && l.name == "" && strings.HasPrefix(a, "--"):
			l.own = append(l.own, a)
			if withValue(a[2:]) {
				if err := next(&i, a); err != nil {
					return l, err
				}
				l.own = append(l.own, args[i])
			}
		case !ended && len(a) > 1 && a[0] == '-' && !(l.name != "" && a[1] == '-'):
			l.options = append(l.options, a)
			for j, c := range a[1:] {
				switch c {
				case 'A':
					l.agent = true
				case 'a':
					l.agent = false
				case 'V':
					l.version = true
				}
				if strings.ContainsRune(sshWithValue, c) {
					if j+2 == len(a) {
						if err := next(&i, a); err != nil {
							return l, err
						}
						l.options = append(l.options, args[i])
					}
					break
				}
			}
		case l.name == "":
			l.name, ended = a, false
		default:
			l.command = args[i:]
			return l, nil
		}
	}
	return l, nil
}

// sandboxOfHost is the name of a sandbox as OpenSSH's programs have it.
func sandboxOfHost(host string) string {
	host = strings.TrimPrefix(host, "ssh://")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	return strings.TrimSuffix(host, sshDomain)
}

func (a *app) sshCommand() *cobra.Command {
	var stdio, knownHosts, config, forwardAgent bool
	cmd := &cobra.Command{
		Use:   "ssh [options of ssh] NAME [COMMAND…]",
		Short: "Use OpenSSH's programs with a sandbox",
		Long: `Run ssh with a sandbox at the other end: a shell, or COMMAND, as the sandbox's
user, with forwarded ports and sockets. All options of ssh(1) work, but a long
one is daytona's. Nothing is asked and nothing kept: who may use the sandbox may
log in, and its host key is learned on the way that is known to lead to it.

The sandbox gets to use the keys of your authentication agent only with -A, or
--forward-agent; ForwardAgent in your configuration does not count.

For other programs that use ssh (scp, sftp, rsync, git, an editor), --config
prints what lets them find the sandbox as NAME` + sshDomain + `.`,
		Example: `  daytona ssh dev
  daytona ssh dev -- make test
  daytona ssh -N -L 8080:localhost:80 dev
  rsync -a -e 'daytona ssh' src/ dev:src/
  daytona ssh --config dev >> ~/.ssh/config
  scp -r src dev` + sshDomain + `:`,
		DisableFlagParsing: true,
		ValidArgsFunction:  a.completeSandboxes(1),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&forwardAgent, "forward-agent", false, "let the sandbox use the keys of your authentication agent; with --stdio and --config, too")
	flags.BoolVar(&config, "config", false, "print a configuration for ssh with an entry for each NAME")
	flags.BoolVar(&stdio, "stdio", false, "join standard input and output to the sandbox, as a ProxyCommand does")
	flags.BoolVar(&knownHosts, "known-hosts", false, "print the sandbox's host keys, as a KnownHostsCommand does")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		all := cmd.Flags()
		all.AddFlagSet(cmd.InheritedFlags())
		line, err := parseSSH(args, func(name string) bool {
			f := all.Lookup(name)
			return f != nil && f.NoOptDefVal == ""
		})
		if err != nil {
			return usageError(cmd, err)
		}
		for _, option := range line.options {
			if option == "-h" && line.name == "" {
				return cmd.Help()
			}
		}
		cmd.DisableFlagParsing = false // else it would not
		if err := all.Parse(line.own); err != nil {
			return usageError(cmd, err)
		}
		if help, _ := all.GetBool("help"); help {
			return cmd.Help()
		}
		a.setupLogging()
		line.agent = line.agent || forwardAgent
		name := sandboxOfHost(line.name)
		switch {
		case line.name == "" && line.version:
		case name == "":
			return usageError(cmd, errors.New("give the NAME of a sandbox"))
		}
		switch {
		case config && (len(line.options) > 0 || stdio || knownHosts):
			return usageError(cmd, errors.New("--config takes nothing but names of sandboxes"))
		case config:
			return a.sshConfig(append([]string{name}, line.command...), line.agent)
		case (stdio || knownHosts) && (len(line.options) > 0 || len(line.command) > 0 || stdio && knownHosts):
			return usageError(cmd, errors.New("--stdio and --known-hosts take nothing but the name of a sandbox"))
		case stdio:
			err := a.sshStdio(cmd.Context(), name, line.agent)
			// With a SIGHUP ssh ends its ProxyCommand: that is no news to anybody.
			if s, ok := errors.AsType[signalError](context.Cause(cmd.Context())); ok && s.number == int(syscall.SIGHUP) {
				return nil
			}
			return err
		case knownHosts:
			return a.sshKnownHosts(cmd.Context(), name)
		}
		return a.runSSH(cmd.Context(), name, line)
	}
	return cmd
}

// sshStdio is the connection for an ssh that called this as its ProxyCommand.
func (a *app) sshStdio(ctx context.Context, name string, agent bool) error {
	return a.withSandbox(ctx, name, func(ctx context.Context, sb daytona.Sandbox) error {
		conn, err := sb.SSH().Dial(ctx, &daytona.SSHOptions{AgentForwarding: agent})
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		go func() {
			_, _ = io.Copy(conn, a.Stdin)
			// This ssh is gone.
			conn.Close()
		}()
		_, err = io.Copy(a.Stdout, conn)
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		return err
	})
}

// sshKnownHosts prints lines of a known_hosts file.
func (a *app) sshKnownHosts(ctx context.Context, name string) error {
	return a.withSandbox(ctx, name, func(ctx context.Context, sb daytona.Sandbox) error {
		keys, err := sb.SSH().HostKeys(ctx)
		if err != nil {
			return err
		}
		_, err = io.WriteString(a.Stdout, knownHosts(name+sshDomain, keys))
		return err
	})
}

func knownHosts(host string, keys []string) string {
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s %s\n", host, k)
	}
	return b.String()
}

// ourselves is this program with the backend that it uses, and arguments, for a
// shell in a configuration of ssh.
func (a *app) ourselves(args ...string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	line := shellQuote(append([]string{self, "ssh", "--backend", a.backendURL}, args...))
	return strings.ReplaceAll(line, "%", "%%"), nil
}

// sshConfig prints entries of an ssh_config file.
func (a *app) sshConfig(names []string, agent bool) error {
	for _, name := range names {
		name = sandboxOfHost(name)
		// It becomes part of a file that programs are started by.
		if !daytona.ValidName(name) {
			return fmt.Errorf("%q is not the name of a sandbox", name)
		}
		args, forward := []string{"--stdio", name}, "no"
		if agent {
			args, forward = []string{"--forward-agent", "--stdio", name}, "yes"
		}
		proxy, err := a.ourselves(args...)
		if err != nil {
			return err
		}
		keys, err := a.ourselves("--known-hosts", name)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(a.Stdout, `Host %[1]s
  ProxyCommand %[2]s
  KnownHostsCommand %[3]s
  HostKeyAlias %[1]s
  UserKnownHostsFile /dev/null
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  UpdateHostKeys no
  ForwardAgent %[4]s
`, name+sshDomain, proxy, keys, forward); err != nil {
			return err
		}
	}
	return nil
}

// runSSH runs ssh and returns its exit code.
func (a *app) runSSH(ctx context.Context, name string, line sshLine) error {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return withHint(err, `install OpenSSH's client; "daytona sandbox shell" and "daytona sandbox exec" do without it`)
	}
	args := line.options
	if name != "" {
		var id string
		var keys []string
		err := a.withSandbox(ctx, name, func(ctx context.Context, sb daytona.Sandbox) (err error) {
			id = sb.ID()
			keys, err = sb.SSH().HostKeys(ctx)
			return err
		})
		if err != nil {
			return err
		}
		// Older clients know no other way than a file. It is gone with this command.
		dir, err := os.MkdirTemp("", "daytona-ssh-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		hosts := filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(hosts, []byte(knownHosts(id, keys)), 0o600); err != nil {
			return err
		}
		own, forward := []string{"--stdio", id}, "no"
		if line.agent {
			own, forward = []string{"--forward-agent", "--stdio", id}, "yes"
		}
		proxy, err := a.ourselves(own...)
		if err != nil {
			return err
		}
		// Of several values ssh takes the first.
		args = []string{}
		for _, o := range []string{
			"ProxyCommand=" + proxy, "HostKeyAlias=" + id, `UserKnownHostsFile="` + strings.ReplaceAll(hosts, "%", "%%") + `"`, "GlobalKnownHostsFile=/dev/null",
			"StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ForwardAgent=" + forward, "ForwardX11=no",
		} {
			args = append(args, "-o", o)
		}
		// After "--" it looks for no options behind the name.
		args = append(append(append(args, line.options...), "--", name+sshDomain), line.command...)
	}
	// Ctrl-C is for ssh, which gets it, too; whatever else ends this ends ssh.
	defer a.interrupts.forwardTo(func(string) {})()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.Stdin, a.Stdout, a.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err = cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code := exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
		return exitCode(code)
	}
	return err
}
