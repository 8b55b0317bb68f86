//go:build linux

package docker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/link"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// The ways to an agent, by what Options.Transport calls them.
const (
	viaSocket = "socket" // its Unix socket, in a directory that the container shares
	viaPort   = "port"   // a port that the engine publishes on the loopback interface
	viaExec   = "exec"   // a relay that the engine runs in the container
)

var transports = []string{viaSocket, viaPort, viaExec}

// The agent listens on this socket, however it is reached.
const socketPath = sharedDir + "/" + socketName

// agentPort is what an agent listens on that is reached through a port.
var agentPort, _ = network.PortFrom(wire.AgentPort, network.TCP)

// loopback is where ports are published: for this machine only.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// sharesFiles reports whether the engine may see the files of this process, and
// this process those of a container's root.
func (b *backend) sharesFiles() bool {
	return strings.HasPrefix(b.api.DaemonHost(), "unix://") && os.Geteuid() == 0 && !b.desktop
}

// ways are the transports to try for a sandbox that has no container yet, best
// first.
func (b *backend) ways(r *record) []string {
	b.way.Lock()
	found := b.way.found
	b.way.Unlock()
	var ways []string
	switch {
	case b.opts.Transport != "":
		ways = []string{b.opts.Transport}
	case found != "":
		ways = []string{found}
	default:
		if b.sharesFiles() {
			ways = append(ways, viaSocket)
		}
		if b.here {
			ways = append(ways, viaPort)
		}
		ways = append(ways, viaExec)
	}
	for i, w := range ways {
		switch {
		case w == viaPort && r.Network.Block:
			ways[i] = viaExec // nothing can be published without a network
		case w == viaSocket && r.Resources.Disk > 0:
			// The directory is on a disk that the limit is not for.
			ways[i] = viaExec
		}
	}
	return slices.Compact(ways)
}

// foundWay keeps what reached an agent, unless a sandbox left no other choice.
func (b *backend) foundWay(w string, r *record) {
	b.way.Lock()
	defer b.way.Unlock()
	if b.way.found == "" && b.opts.Transport == "" && (w == viaSocket || !r.Network.Block && r.Resources.Disk == 0) {
		b.way.found = w
		b.log.Info("agents are reached", "transport", w)
	}
}

// unreached says that an agent runs, but not where its transport leads.
type unreached struct {
	way string
	err error
}

func (u *unreached) Error() string { return fmt.Sprintf("transport %q: %v", u.way, u.err) }

func (u *unreached) Unwrap() error { return u.err }

// dial connects to the agent of a sandbox.
func (b *backend) dial(ctx context.Context, id string) (net.Conn, error) {
	r, err := b.Load(id)
	if err != nil {
		return nil, err
	}
	switch r.Own.Transport {
	case viaSocket:
		// The directory is the container's to write, so nothing in it is
		// followed anywhere: what is not a socket in that very place is no agent.
		return lifecycle.DialBeneath(ctx, b.File(id, shared), socketName)
	case viaPort:
		if r.Own.Port == 0 {
			return nil, errors.New("the engine has published no port yet")
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(loopback, r.Own.Port).String())
		if err != nil {
			return nil, err
		}
		return link.Client(ctx, c, r.Own.Key)
	case viaExec:
		return b.relays.Dial(ctx, r.ID, r.Own.StartedAt)
	}
	return nil, fmt.Errorf("%s says nothing of how its agent is reached", b.File(id, "record.json"))
}

// published asks for the port of this machine that leads to the agent.
func (b *backend) published(ctx context.Context, id string) (uint16, error) {
	c, err := b.api.ContainerInspect(ctx, b.containerName(id), client.ContainerInspectOptions{})
	if err != nil {
		return 0, err
	}
	if s := c.Container.NetworkSettings; s != nil {
		for _, binding := range s.Ports[agentPort] {
			if n, err := strconv.ParseUint(binding.HostPort, 10, 16); err == nil && n > 0 && binding.HostIP == loopback {
				return uint16(n), nil
			}
		}
	}
	return 0, nil
}

// patience is how long an agent may take to answer until it is asked for by way
// of the engine, which decides whether it is the agent or the transport.
const patience = 2 * time.Second

// awaitAgent waits for the agent to listen.
func (b *backend) awaitAgent(ctx context.Context, r *record, p *proc) error {
	try := func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c, err := b.dial(ctx, r.ID)
		if err == nil {
			err = c.Close()
		}
		return err
	}
	doubt := time.NewTimer(patience)
	defer doubt.Stop()
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		// The socket is there a moment before the agent listens on it.
		if try() == nil {
			return nil
		}
		select {
		case <-p.done:
			return nil // Greet says why
		case <-ctx.Done():
			return ctx.Err()
		case <-doubt.C:
			doubt.Reset(patience)
			if r.Own.Transport == viaExec {
				continue
			}
			c, err := b.relays.Dial(ctx, r.ID, r.Own.StartedAt)
			if err != nil {
				continue
			}
			c.Close()
			b.relays.End(r.ID, r.Own.StartedAt)
			if err := try(); err != nil {
				return &unreached{r.Own.Transport, err}
			}
			return nil
		case <-time.After(wait):
		}
	}
}

// whereIs tells whether an engine's address leads to this machine, as far as its
// loopback interface is concerned, and else the addresses that it has.
func whereIs(ctx context.Context, address string) (here bool, elsewhere []netip.Prefix, err error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.Scheme == "unix" {
		return true, nil, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return false, nil, err
	}
	for _, ip := range ips {
		ip = ip.Unmap()
		if ip.IsLoopback() {
			return true, nil, nil
		}
		if ip.Is4() {
			elsewhere = append(elsewhere, netip.PrefixFrom(ip, 32))
		}
	}
	return false, elsewhere, nil
}

// startRelay has the engine run a relay in a sandbox's container.
func (b *backend) startRelay(ctx context.Context, id string) (link.Stream, error) {
	r, err := b.Load(id)
	if err != nil {
		return nil, err
	}
	// The engine reads the users for that, too, and waits for ever where they are
	// in a pipe. (A sandbox that puts one there between the two has cost the
	// engine a thread, and nobody else anything.)
	if err := b.checkFiles(ctx, lifecycle.DialOp, r); err != nil {
		return nil, err
	}
	created, err := b.api.ExecCreate(ctx, b.containerName(id), client.ExecCreateOptions{
		User: "0:0", WorkingDir: "/", Cmd: []string{agentFile, "relay", socketPath},
		AttachStdin: true, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return nil, err
	}
	attached, err := b.api.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	if err != nil {
		return nil, err
	}
	return &demux{Conn: attached.Conn, in: attached.Reader}, nil
}

// demux reads the standard output of a program out of what the engine makes of
// its outputs: pieces, each with a header that has its stream and length. It
// keeps the beginning of what is standard error.
type demux struct {
	net.Conn
	in   io.Reader
	left uint32 // of the present piece

	mu   sync.Mutex
	said []byte
}

// saidLimit bounds what is kept of standard error, in bytes.
const saidLimit = 1 << 10

func (d *demux) Read(p []byte) (int, error) {
	for d.left == 0 {
		var header [8]byte
		if _, err := io.ReadFull(d.in, header[:]); err != nil {
			return 0, err
		}
		length := binary.BigEndian.Uint32(header[4:])
		if header[0] == 1 { // standard output
			d.left = length
			continue
		}
		if err := d.hear(io.LimitReader(d.in, int64(length))); err != nil {
			return 0, err
		}
	}
	n, err := d.in.Read(p[:min(uint64(len(p)), uint64(d.left))])
	d.left -= uint32(n)
	return n, err
}

func (d *demux) hear(piece io.Reader) error {
	d.mu.Lock()
	b, err := io.ReadAll(io.LimitReader(piece, int64(saidLimit-len(d.said))))
	d.said = append(d.said, b...)
	d.mu.Unlock()
	if err == nil {
		_, err = io.Copy(io.Discard, piece)
	}
	return err
}

// Said implements link.Stream.
func (d *demux) Said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.TrimSpace(strings.Map(printable, string(d.said)))
}

// refuseTransport says what is wrong with the transport that was asked for; nil
// if nothing is.
func (b *backend) refuseTransport() error {
	w := b.opts.Transport
	refuse := func(kind daytona.Kind, rule string) error {
		return &daytona.Error{Kind: kind, Op: openOp, Field: "Transport", Value: w, Message: rule}
	}
	switch {
	case w != "" && !slices.Contains(transports, w):
		return refuse(daytona.KindInvalid, fmt.Sprintf("there are %q; none is to find out", transports))
	case w == viaSocket && !b.sharesFiles():
		return refuse(daytona.KindUnsupported, "the engine must be on this machine, reached through a Unix socket, and this process root; it is "+b.api.DaemonHost())
	case w == viaPort && !b.here:
		return refuse(daytona.KindUnsupported, "ports are published on the loopback interface of the engine's machine, which this is not; use \"exec\"")
	}
	return nil
}
