// Package port is the part of the agent's HTTP API about the TCP ports of a
// sandbox: which are in use, connections to them, and a reverse proxy for
// previews. It reaches nothing but the loopback interface, and knows nothing of
// tokens or of who is calling.
package port

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/portproxy"
	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// Options of a Service.
type Options struct {
	// Account is whose processes may be looked into, to tell who listens. Defaults
	// to [account.Current].
	Account *account.Account
	// Logger defaults to none.
	Logger *slog.Logger
}

// Service answers the port routes.
type Service struct {
	logger    *slog.Logger
	transport *portproxy.Transport
	account   *account.Account
	monitor   monitor
}

// New returns a Service.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Account == nil {
		o.Account = account.Current()
	}
	s := &Service{logger: o.Logger, account: o.Account, transport: portproxy.NewTransport(func(ctx context.Context, port int) (net.Conn, error) {
		return dial(ctx, strconv.Itoa(port))
	})}
	s.monitor.look, s.monitor.epoch = s.listeners, strings.ToLower(rand.Text()[:8])
	return s
}

// Register adds the routes to mux, all but the proxy: a ServeMux cleans paths,
// which are the proxied program's own; see ServeProxy.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /port", s.list)
	mux.HandleFunc("GET "+wire.ListenersPath, s.listListeners)
	mux.HandleFunc("GET "+wire.PortEventsPath, s.events)
	mux.HandleFunc("GET /port/{port}/in-use", s.inUse)
	mux.HandleFunc("GET /port/{port}/connect", s.connect)
}

// Close closes idle connections.
func (s *Service) Close() { s.transport.Close() }

func (s *Service) list(w http.ResponseWriter, r *http.Request) {
	ports, err := listening()
	if err != nil {
		wire.WriteError(w, r, http.StatusInternalServerError, "", err.Error())
		return
	}
	wire.WriteJSON(w, http.StatusOK, wire.PortList{Ports: ports})
}

func (s *Service) inUse(w http.ResponseWriter, r *http.Request) {
	// The range is the protocol's.
	port, err := strconv.Atoi(r.PathValue("port"))
	if err != nil || port < 3000 || port > 9999 {
		wire.WriteError(w, r, http.StatusBadRequest, "", fmt.Sprintf("port %q: give a number from 3000 to 9999", clip(r.PathValue("port"))))
		return
	}
	ports, err := listening()
	if err != nil {
		wire.WriteError(w, r, http.StatusInternalServerError, "", err.Error())
		return
	}
	_, found := slices.BinarySearch(ports, port)
	wire.WriteJSON(w, http.StatusOK, wire.IsPortInUse{IsInUse: found})
}

func clip(s string) string { return wire.Clip(s, 64) }

// dialTimeout is for loopback: whoever listens with a full queue.
const dialTimeout = 10 * time.Second

// dial connects to a port of the loopback interface, IPv4 first.
func dial(ctx context.Context, port string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return conn, nil
	}
	if conn, err6 := d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", port)); err6 == nil {
		return conn, nil
	}
	return nil, err
}

// parsePort accepts every port that can be connected to.
func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: give a number from 1 to 65535", clip(s))
	}
	return int(n), nil
}

func writeDialError(w http.ResponseWriter, r *http.Request, port string, err error) {
	if errors.Is(err, unix.ECONNREFUSED) {
		wire.WriteError(w, r, http.StatusBadGateway, wire.CodeNotListening, "nothing listens on port "+port+" of the sandbox")
		return
	}
	wire.WriteError(w, r, http.StatusBadGateway, "", "connect to port "+port+" of the sandbox: "+err.Error())
}

// frameSize is that of the frames to the client, in bytes.
const frameSize = 32 << 10

// connect carries the bytes of a TCP connection over a WebSocket; see package
// wire.
func (s *Service) connect(w http.ResponseWriter, r *http.Request) {
	port, err := parsePort(r.PathValue("port"))
	if err != nil {
		wire.WriteError(w, r, http.StatusBadRequest, "", err.Error())
		return
	}
	tcp, err := dial(r.Context(), strconv.Itoa(port))
	if err != nil {
		writeDialError(w, r, strconv.Itoa(port), err)
		return
	}
	defer tcp.Close()
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		// Who may connect is decided before; a browser's origin is that of a
		// page that the caller chose.
		InsecureSkipVerify: true,
		Subprotocols:       wire.OfferedVersion(r),
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		return // answered
	}
	defer ws.CloseNow()
	ws.SetReadLimit(-1) // messages are streamed

	// Each direction ends by itself; an error of either ends both.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	defer stop()
	ended := make(chan error, 2)
	go func() { ended <- fromClient(ctx, ws, tcp.(*net.TCPConn)) }()
	go func() { ended <- toClient(ctx, ws, tcp) }()
	for range 2 {
		if err = <-ended; err != nil {
			// This ends the other direction if it waits for the program. The
			// context is left for later: cancelling it tears the WebSocket down,
			// and the client would not see why.
			tcp.Close()
			status := websocket.StatusInternalError
			if websocket.CloseStatus(err) != -1 {
				status = websocket.StatusNormalClosure
			}
			_ = ws.Close(status, "connection lost")
			return
		}
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
}

func fromClient(ctx context.Context, ws *websocket.Conn, tcp *net.TCPConn) error {
	buf := make([]byte, frameSize)
	for {
		kind, message, err := ws.Reader(ctx)
		if err != nil {
			return err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{tcp}, message, buf)
		if err != nil {
			return err
		}
		if n == 0 && kind == websocket.MessageBinary {
			// The end of this direction. What comes now are only control
			// frames, which somebody has to read.
			if err := tcp.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
				return err
			}
			ws.CloseRead(ctx)
			return nil
		}
	}
}

func toClient(ctx context.Context, ws *websocket.Conn, tcp net.Conn) error {
	buf := make([]byte, frameSize)
	for {
		n, err := tcp.Read(buf)
		if n > 0 {
			if err := ws.Write(ctx, websocket.MessageBinary, buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return ws.Write(ctx, websocket.MessageBinary, nil)
		}
		if err != nil {
			return err
		}
	}
}
