package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Finding is one thing that Diagnose looked at.
type Finding struct {
	// Name says what was looked at, in a few words.
	Name string
	// OK says that it is as it should be.
	OK bool
	// Detail says what was found, and if it is not OK what to do about it.
	Detail string
}

// Diagnose tries out what networking needs on this machine and says in plain words what works:
// kernel networking for root, rootless networking for others. As root it opens a Host and makes a
// namespace, so that afterwards the host is prepared as OpenHost does it.
func Diagnose(ctx context.Context, opts *HostOptions) []Finding {
	var found []Finding
	note := func(name string, err error, detail string) {
		f := Finding{Name: name, OK: err == nil, Detail: detail}
		if err != nil {
			f.Detail = err.Error()
		}
		found = append(found, f)
	}
	if os.Geteuid() == 0 {
		diagnoseKernel(ctx, opts, note)
	} else {
		note("kernel networking", nil, "needs root; this user gets rootless networking")
		diagnoseRootless(ctx, note)
	}
	resolvers, err := Resolvers()
	note("resolvers for sandboxes", err, join(resolvers))
	return found
}

func join[T fmt.Stringer](list []T) string {
	var words []string
	for _, item := range list {
		words = append(words, item.String())
	}
	return strings.Join(words, ", ")
}

func diagnoseKernel(ctx context.Context, opts *HostOptions, note func(string, error, string)) {
	small := HostOptions{}
	if opts != nil {
		small = *opts
	}
	small.Ready, small.ReadyOffline = 0, 0
	h, err := OpenHost(ctx, &small)
	note("host firewall, address range and forwarding", err, "")
	if err != nil {
		return
	}
	defer h.Close()
	began := time.Now()
	n, err := h.Create(ctx, Policy{})
	note("network namespace, veth pair and rules", err,
		fmt.Sprintf("made in %.1f ms; addresses from %s", float64(time.Since(began).Microseconds())/1000, h.Prefix()))
	if err != nil {
		return
	}
	defer n.Close()
	err = nil
	if h.noEgress.Load() {
		err = errors.New("the kernel has no netdev egress hook (Linux 5.16): raw frames are not filtered, so sandboxes must not have CAP_NET_RAW")
	}
	note("filter for raw frames", err, "works")
	uplinks, err := h.uplinks()
	if err == nil && len(uplinks) == 0 {
		err = errors.New("this host has no IPv4 default route, so sandboxes reach nothing; add one, or name the interface that leads out")
	}
	var names []string
	for name := range uplinks {
		names = append(names, name)
	}
	note("way out", err, strings.Join(names, ", "))
	warnings := h.passForeignFirewalls()
	err = nil
	if len(warnings) > 0 {
		err = errors.New(strings.Join(warnings, "; "))
	}
	note("other firewalls on this host", err, "none in the way")
	// From inside to the gateway: shows that the link carries packets, as the host's refusal
	// or silence alone would not.
	err = inside(h.home, n.file, func() error {
		link, err := net.InterfaceByName(insideName)
		if err == nil && link.Flags&net.FlagRunning == 0 {
			err = errors.New("the link has no carrier")
		}
		return err
	})
	note("link between host and sandbox", err, "has a carrier")
}

func diagnoseRootless(ctx context.Context, note func(string, error, string)) {
	// A process that does nothing, in the namespaces that a rootless sandbox needs.
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Path = "/nonexistent" // the clone is what counts: it fails before the program is looked for
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	err := cmd.Run()
	if errors.Is(err, unix.ENOENT) {
		err = nil
	} else if err == nil {
		err = errors.New("a program that does not exist was started")
	} else {
		err = fmt.Errorf("%w: unprivileged user namespaces are switched off; see the settings user.max_user_namespaces, user.max_net_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns", err)
	}
	note("unprivileged user and network namespaces", err, "work")
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		tun.Close()
		note("device of rootless sandboxes", nil, "TUN")
	} else {
		note("device of rootless sandboxes", nil, "packet socket on a veth pair, because /dev/net/tun cannot be opened")
	}
}
