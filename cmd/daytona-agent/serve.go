package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/link"
	"github.com/daytona-go/daytona/toolbox"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// memoryLimit is the heap size above which the collector works harder, in
	// bytes. Not a limit that anything fails by.
	memoryLimit = 64 << 20
	// configLimit bounds the configuration, in bytes.
	configLimit = 16 << 20
	// quietTime without a request is when the agent gives back memory. The next
	// one then takes a third of a millisecond longer.
	quietTime = 5 * time.Second
)

func serve(args []string) int {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := serveUntil(args, logger); err != nil {
		logger.Error("the agent ends", "error", err)
		return 1
	}
	return 0
}

func serveUntil(args []string, logger *slog.Logger) error {
	// Nobody may trace the agent or read its memory, which has the token.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the agent untraceable: %w", err)
	}
	tune()
	unix.Umask(0o022)

	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	configFD := flags.Int("config-fd", 4, "descriptor that the JSON configuration is read from; -1 for none")
	listenFD := flags.Int("listen-fd", 3, "descriptor of the listening socket")
	listen := flags.String("listen", "", "unix:///PATH or tcp://ADDRESS:PORT to listen on, in place of --listen-fd")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	config := toolbox.Config{Version: version}
	if *configFD >= 0 {
		if err := readConfig(*configFD, &config); err != nil {
			return err
		}
	}
	if config.Telemetry == nil {
		config.Telemetry = telemetryOf(os.Getenv)
	}
	ctx := context.Background()
	if config.IgnoreSignals {
		ignoreSignals()
	} else {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
		defer stop()
	}
	l, err := listener(*listen, *listenFD)
	if err != nil {
		return err
	}
	if config.Key != "" {
		if l, err = publish(l, config.Key); err != nil {
			return err
		}
	}
	server, err := toolbox.New(ctx, config, logger)
	if err != nil {
		l.Close()
		return err
	}
	// Where most programs run: what is started from here need not go anywhere.
	if err := os.Chdir(server.WorkDir()); err != nil {
		logger.Warn("programs take longer to start", "error", err)
	}
	server.OnQuiet(quietTime, func() {
		if err := unmapProgram(); err != nil {
			logger.Debug("the agent takes more memory than it needs", "error", err)
		}
	})
	err = server.Serve(ctx, l)
	err = errors.Join(err, server.Close())
	if errors.Is(err, toolbox.ErrIdle) || errors.Is(err, toolbox.ErrExpired) {
		logger.Info("the sandbox stops", "reason", err)
		return nil
	}
	return err
}

// ignoreSignals takes the signals that would end the agent and does nothing.
// The kernel keeps signals of its own processes from an init, unless it has
// handlers, as every Go program does for most: to those of os/signal's "Default
// behavior of signals" that end a program, this adds the ones of faults, which
// somebody may send, too. All others do nothing. It names no more than that:
// each costs a tenth of a millisecond of the sandbox's start.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1),
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM,
		syscall.SIGQUIT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGABRT, syscall.SIGSTKFLT, syscall.SIGSYS,
		syscall.SIGBUS, syscall.SIGFPE, syscall.SIGSEGV)
}

// tune trades throughput of the collector for memory: there may be hundreds of
// agents on a machine, and each is idle most of the time.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// On two CPUs one is the client's: handing work between threads costs a
		// command a tenth of its time.
		runtime.GOMAXPROCS(min(4, max(1, runtime.GOMAXPROCS(0)/2)))
	}
}

// readConfig reads the configuration to its end and closes the descriptor:
// programs of the sandbox must not find it.
func readConfig(fd int, config *toolbox.Config) error {
	f := os.NewFile(uintptr(fd), "configuration")
	if f == nil {
		return fmt.Errorf("read the configuration: %d is no descriptor", fd)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, configLimit+1))
	if err != nil {
		return fmt.Errorf("read the configuration from descriptor %d: %w", fd, err)
	}
	if len(b) > configLimit {
		return fmt.Errorf("read the configuration from descriptor %d: more than %d bytes", fd, configLimit)
	}
	if err := json.Unmarshal(b, config); err != nil {
		return fmt.Errorf("read the configuration from descriptor %d: %w", fd, err)
	}
	if config.Version == "" {
		config.Version = version
	}
	return nil
}

// telemetryOf is the configuration that Daytona's runners give by environment;
// nil if there is none.
func telemetryOf(getenv func(string) string) *wire.TelemetryConfig {
	t := &wire.TelemetryConfig{Endpoint: getenv("DAYTONA_OTEL_ENDPOINT"), Labels: map[string]string{}}
	if t.Endpoint == "" {
		return nil
	}
	for pair := range strings.SplitSeq(getenv("DAYTONA_SANDBOX_OTEL_EXTRA_LABELS"), ",") {
		if name, value, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && name != "" {
			t.Labels[name] = value
		}
	}
	for label, variable := range map[string]string{
		"daytona_organization_id": "DAYTONA_ORGANIZATION_ID", "daytona_region_id": "DAYTONA_REGION_ID", "daytona_snapshot": "DAYTONA_SANDBOX_SNAPSHOT",
	} {
		if value := getenv(variable); value != "" {
			t.Labels[label] = value
		}
	}
	return t
}

// publish has the agent listen on a port besides, for those who know the key.
func publish(private net.Listener, key string) (net.Listener, error) {
	public, err := net.Listen("tcp4", ":"+strconv.Itoa(wire.AgentPort))
	if err == nil {
		var l net.Listener
		if l, err = link.Join(private, public, key); err == nil {
			return l, nil
		}
		public.Close()
	}
	private.Close()
	return nil, fmt.Errorf("listen on the published port: %w", err)
}

func listener(address string, fd int) (net.Listener, error) {
	if address == "" {
		f := os.NewFile(uintptr(fd), "listener")
		if f == nil {
			return nil, fmt.Errorf("listen: %d is no descriptor", fd)
		}
		defer f.Close() // FileListener makes a copy
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("listen on descriptor %d: %w (or give --listen)", fd, err)
		}
		return l, nil
	}
	network, where, ok := strings.Cut(address, "://")
	if !ok || network != "unix" && network != "tcp" {
		return nil, fmt.Errorf("listen on %q: give unix:///PATH or tcp://ADDRESS:PORT", address)
	}
	l, err := net.Listen(network, where)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}
