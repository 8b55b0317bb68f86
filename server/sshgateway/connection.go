package sshgateway

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"
)

// maxChannels of a connection. requestRate a second, after requestBurst at once,
// is how many channels and requests of it are passed on; then it has to wait.
// leaveTime is what a client may take to go that has been told to.
const (
	leaveTime                 = 2 * time.Second
	maxChannels               = 256
	requestRate, requestBurst = 500, 1000
)

// connection is one client's.
type connection struct {
	gateway   *Gateway
	server    *ssh.ServerConn
	sandbox   *upstream
	sandboxID string
}

// alive asks the client whether it is there.
func (c *connection) alive(gone func()) {
	timer := time.AfterFunc(aliveTime, gone)
	defer timer.Stop()
	// Any answer is one.
	if _, _, err := c.server.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		gone()
	}
}

// run passes channels on, both ways, until either side is gone.
func (c *connection) run(ctx context.Context, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.sandbox.Close()
	defer c.server.Close()
	limit := rate.NewLimiter(requestRate, requestBurst)
	slots := make(chan struct{}, maxChannels)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.sandbox.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-done:
			return
		case r, ok := <-requests:
			if !ok {
				return
			}
			if limit.Wait(ctx) != nil {
				return
			}
			// Nothing is to be opened beside the channels: no port is listened on
			// for a client. What is only asked to see whether somebody is there
			// gets its answer either way.
			_ = r.Reply(r.Type == "keepalive@openssh.com", nil)
		case n, ok := <-channels:
			if !ok {
				return
			}
			if limit.Wait(ctx) != nil {
				return
			}
			if reason := c.refusal(n); reason != "" {
				_ = n.Reject(ssh.Prohibited, reason)
				continue
			}
			select {
			case slots <- struct{}{}:
			default:
				_ = n.Reject(ssh.ResourceShortage, "too many channels")
				continue
			}
			wg.Go(func() {
				defer func() { <-slots }()
				pass(ctx, n, c.sandbox, limit, c.mayAsk)
			})
		case n, ok := <-c.sandbox.channels:
			if !ok {
				return
			}
			if n.ChannelType() != "auth-agent@openssh.com" || !c.gateway.config.AgentForwarding {
				_ = n.Reject(ssh.Prohibited, "not allowed")
				continue
			}
			select {
			case slots <- struct{}{}:
			default:
				_ = n.Reject(ssh.ResourceShortage, "too many channels")
				continue
			}
			wg.Go(func() {
				defer func() { <-slots }()
				pass(ctx, n, c.server, limit, func(string) bool { return true })
			})
		}
	}
}

// refusal says why a channel is not opened, "" if it is.
func (c *connection) refusal(n ssh.NewChannel) string {
	switch n.ChannelType() {
	case "session", "direct-streamlocal@openssh.com":
		return ""
	case "direct-tcpip":
		var m struct {
			Host       string
			Port       uint32
			OriginHost string
			OriginPort uint32
		}
		if ssh.Unmarshal(n.ExtraData(), &m) != nil || m.Port == 0 || m.Port > 65535 {
			return "the address is wrong"
		}
		if !itself(m.Host) {
			return "only the sandbox itself can be reached: forward to localhost"
		}
		return ""
	}
	return "channels of this type are not opened"
}

// itself reports whether a host names the sandbox itself.
func itself(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// mayAsk reports whether a request within a channel may be passed on.
func (c *connection) mayAsk(kind string) bool {
	switch kind {
	case "x11-req":
		return false
	case "auth-agent-req@openssh.com":
		return c.gateway.config.AgentForwarding
	}
	return true
}

// opener opens channels on the other side.
type opener interface {
	OpenChannel(name string, data []byte) (ssh.Channel, <-chan *ssh.Request, error)
}

// pass opens the same channel on the other side and copies what there is, until
// both have ended it.
func pass(ctx context.Context, n ssh.NewChannel, to opener, limit *rate.Limiter, may func(kind string) bool) {
	there, theirRequests, err := to.OpenChannel(n.ChannelType(), n.ExtraData())
	if err != nil {
		if e, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			_ = n.Reject(e.Reason, e.Message)
		} else {
			_ = n.Reject(ssh.ConnectionFailed, "the sandbox can't be reached")
		}
		return
	}
	defer there.Close()
	here, ourRequests, err := n.Accept()
	if err != nil {
		go ssh.DiscardRequests(theirRequests)
		return
	}
	defer here.Close()
	stop := context.AfterFunc(ctx, func() { here.Close(); there.Close() })
	defer stop()

	var wg sync.WaitGroup
	// What the client asks of the channel, in order.
	wg.Go(func() {
		for r := range ourRequests {
			if limit.Wait(ctx) != nil || !may(r.Type) {
				_ = r.Reply(false, nil)
				continue
			}
			ok, err := there.SendRequest(r.Type, r.WantReply, r.Payload)
			if r.WantReply {
				_ = r.Reply(ok && err == nil, nil)
			}
		}
		// The client has closed the channel: nobody reads what comes yet.
		there.Close()
	})
	wg.Go(func() {
		_, _ = io.Copy(there, here)
		_ = there.CloseWrite()
	})
	// What comes back: all output, then the exit status, then the end.
	var out sync.WaitGroup
	out.Go(func() { _, _ = io.Copy(here, there) })
	out.Go(func() { _, _ = io.Copy(here.Stderr(), there.Stderr()) })
	for r := range theirRequests {
		if r.Type == "exit-status" || r.Type == "exit-signal" {
			out.Wait()
		}
		ok, err := here.SendRequest(r.Type, r.WantReply, r.Payload)
		if r.WantReply {
			_ = r.Reply(ok && err == nil, nil)
		}
	}
	out.Wait()
	_ = here.CloseWrite()
	here.Close()
	wg.Wait()
}

// explain tells the client in its first session why there is none.
func (c *connection) explain(ctx context.Context, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request, message string) {
	go ssh.DiscardRequests(requests)
	timeout := time.After(loginTime)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timeout:
			return
		case n, ok := <-channels:
			if !ok {
				return
			}
			if n.ChannelType() != "session" {
				_ = n.Reject(ssh.Prohibited, message)
				continue
			}
			ch, asked, err := n.Accept()
			if err != nil {
				return
			}
			// The client shows nothing before its shell or command has begun.
			for r := range asked {
				begun := r.Type == "shell" || r.Type == "exec" || r.Type == "subsystem"
				_ = r.Reply(begun || r.Type == "pty-req" || r.Type == "env", nil)
				if !begun {
					continue
				}
				_, _ = io.WriteString(ch.Stderr(), message+"\r\n")
				_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{1}))
				break
			}
			ch.Close()
			// The client goes by itself, once it has read all of that.
			timer := time.AfterFunc(leaveTime, func() { c.server.Close() })
			defer timer.Stop()
			for range asked {
			}
			for n := range channels {
				_ = n.Reject(ssh.Prohibited, message)
			}
			return
		}
	}
}
