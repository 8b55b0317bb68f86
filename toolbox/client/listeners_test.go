package client_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/client"
	"github.com/daytona-go/daytona/toolbox/port"
)

func portAgent(t testing.TB) http.Handler {
	t.Helper()
	service := port.New(port.Options{})
	t.Cleanup(service.Close)
	mux := http.NewServeMux()
	service.Register(mux)
	return mux
}

func listenOn(t testing.TB, address string) (net.Listener, int) {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(address, "0.0.0.0") {
		network = "tcp4" // else it would be all addresses of IPv6, too
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).Port
}

func TestListeners(t *testing.T) {
	ports := serve(t, portAgent(t), nil).Ports()
	for _, c := range []struct{ listen, addr string }{{"127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {":0", "::"}, {"0.0.0.0:0", "0.0.0.0"}} {
		_, number := listenOn(t, c.listen)
		list, err := ports.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for i, l := range list {
			if i > 0 && list[i-1].Port > l.Port {
				t.Errorf("%d comes after %d", l.Port, list[i-1].Port)
			}
			if l.Port != number || l.Addr.String() != c.addr {
				continue
			}
			found = true
			if l.PID != os.Getpid() || l.UID != os.Getuid() || l.Process == "" || len(l.Command) != len(os.Args) || l.Command[0] != os.Args[0] {
				t.Errorf("%s: %+v", c.listen, l)
			}
		}
		if !found {
			t.Errorf("%s on port %d is not in %+v", c.listen, number, list)
		}
	}
	old := http.NewServeMux() // an agent that knows of numbers only
	old.HandleFunc("GET /port", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"ports":[80,8080]}`) })
	ports = serve(t, old, nil).Ports()
	if list, err := ports.List(t.Context()); err != nil || len(list) != 2 || list[1].Port != 8080 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, err := range ports.Watch(t.Context(), nil) {
		wantKind(t, err, daytona.KindUnsupported)
	}
}

// portEvents reads the events of one port.
type portEvents struct {
	*testing.T
	next func() (daytona.PortEvent, error, bool)
}

func watchPorts(t *testing.T, p daytona.Ports, cursor string) *portEvents {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	next, stop := iter.Pull2(p.Watch(ctx, &daytona.WatchPortsOptions{Cursor: cursor}))
	t.Cleanup(func() { stop(); cancel() })
	return &portEvents{t, next}
}

// want waits for an event of a port, past those of others on this machine, and
// returns its cursor, or that of the first event after it that has one.
func (p *portEvents) want(kind daytona.PortEventType, port int) string {
	p.Helper()
	seen := false
	for {
		e, err, _ := p.next()
		if err != nil {
			p.Fatalf("before %s of %d: %v", kind, port, err)
		}
		if e.Listener.Port == port {
			if e.Type != kind {
				p.Fatalf("port %d: %s, want %s", port, e.Type, kind)
			}
			seen = true
		}
		if seen && e.Cursor != "" {
			return e.Cursor
		}
	}
}

func TestWatchPorts(t *testing.T) {
	agent := portAgent(t)
	socket := socketPath(t)
	stop := listen(t, socket, agent)
	tb := client.New(dialer(socket), nil)
	t.Cleanup(func() { tb.Close() })

	first, number := listenOn(t, "127.0.0.1:0")
	events := watchPorts(t, tb.Ports(), "")
	events.want(daytona.PortOpened, number)
	second, other := listenOn(t, "127.0.0.1:0")
	cursor := events.want(daytona.PortOpened, other)
	first.Close()
	events.want(daytona.PortClosed, number)

	// From a cursor on, there is only what came after it.
	again := watchPorts(t, tb.Ports(), cursor)
	again.want(daytona.PortClosed, number)

	// All connections break; what happens meanwhile is told after.
	stop()
	second.Close()
	stop = listen(t, socket, agent)
	events.want(daytona.PortClosed, other)
	again.want(daytona.PortClosed, other)

	// Another agent does not know of the cursor, and tells all it sees.
	stop()
	_, third := listenOn(t, "127.0.0.1:0")
	stop = listen(t, socket, portAgent(t))
	defer stop()
	events.want(daytona.PortOpened, third)

	for _, cursor := range []string{"x", "x.y", strings.Repeat("x", 10000)} {
		for _, err := range tb.Ports().Watch(t.Context(), &daytona.WatchPortsOptions{Cursor: cursor}) {
			wantKind(t, err, daytona.KindInvalid)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range tb.Ports().Watch(ctx, nil) {
		if cancel(); err != nil && err != context.Canceled && ctx.Err() == nil {
			t.Error(err)
		}
	}
}

// h2c is a server that speaks HTTP/1.1 and HTTP/2 without TLS.
func h2c(t *testing.T, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func TestPortProxy(t *testing.T) {
	ports := serve(t, portAgent(t), nil).Ports()
	var mu sync.Mutex
	var seen *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = r
		mu.Unlock()
		if r.Header.Get("Upgrade") != "" {
			ws, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			defer ws.CloseNow()
			for {
				kind, b, err := ws.Read(r.Context())
				if err != nil || ws.Write(r.Context(), kind, b) != nil {
					return
				}
			}
		}
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	}))
	t.Cleanup(server.Close)
	number := server.Listener.Addr().(*net.TCPAddr).Port
	outside := h2c(t, ports.Proxy(number, nil))

	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	// The server answers from the first byte on: nothing of the rest is lost.
	for range 100 {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", outside.URL+"/a%2Fb/../c?q=1", bytes.NewReader(data))
		req.Header.Set("X-Forwarded-For", "9.9.9.9")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back, status %d, %v", len(got), resp.StatusCode, err)
		}
	}
	if seen.RequestURI != "/a%2Fb/../c?q=1" || seen.Header.Get("X-Forwarded-For") != "127.0.0.1" || seen.Host != strings.TrimPrefix(outside.URL, "http://") {
		t.Errorf("the server saw %s %s %v", seen.Host, seen.RequestURI, seen.Header)
	}

	ws, _, err := websocket.Dial(t.Context(), outside.URL+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	for i := range 100 {
		message := fmt.Sprint("message ", i)
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := ws.Read(t.Context()); err != nil || string(b) != message {
			t.Fatalf("%q %v", b, err)
		}
	}

	// A server of gRPC speaks nothing but HTTP/2.
	l, number := listenOn(t, "127.0.0.1:0")
	rpc := grpc.NewServer()
	state := health.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, state)
	go rpc.Serve(l)
	t.Cleanup(rpc.Stop)
	outside = h2c(t, ports.Proxy(number, nil))
	conn, err := grpc.NewClient(strings.TrimPrefix(outside.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	asking := grpc_health_v1.NewHealthClient(conn)
	if answer, err := asking.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("%v %v", answer, err)
	}
	// The error of an unknown service is in headers that are trailers as well:
	// they end the answer, which must not be sent on before that is known.
	for i := range 300 {
		if _, err := asking.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "none"}); err == nil || !strings.Contains(err.Error(), "unknown service") {
			t.Fatalf("the error of an unknown service, call %d: %v", i, err)
		}
	}
	stream, err := asking.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: "s"})
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{3, 1, 2} {
		if err != nil {
			t.Fatal(err)
		}
		if want != 3 { // unknown, at first
			state.SetServingStatus("s", want)
		}
		if answer, err := stream.Recv(); err != nil || answer.Status != want {
			t.Fatalf("%v %v, want %v", answer, err, want)
		}
	}

	// Nobody listens.
	l.Close()
	rpc.Stop()
	if resp, err := http.Get(outside.URL); err != nil || resp.StatusCode != 502 {
		t.Errorf("%v %v", resp, err)
	} else {
		resp.Body.Close()
	}
}
