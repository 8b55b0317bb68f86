package desktop

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// vncBuffer is the size of the pieces in which a connection's bytes are passed
// on, vncMessage what a browser may send at once.
const (
	vncBuffer  = 64 << 10
	vncMessage = 4 << 20
	// vncClients is how many browsers may look on at the same time.
	vncClients = 32
)

//go:embed vnc.html
var vncPage []byte

//go:embed vnc.js
var vncScript []byte

// WebMain serves the page that shows the desktop in a browser, and carries the
// VNC protocol between its WebSocket and the VNC server. Its arguments are where
// to listen, where the VNC server listens, and noVNC's directory. It returns the
// exit code.
func WebMain(args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(os.Stderr, "novnc: want three arguments: where to listen, where the VNC server listens, the directory of noVNC")
		return 2
	}
	listen, vnc, web := args[0], args[1], args[2]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "novnc:", err)
		return 1
	}
	fmt.Printf("noVNC from %s on http://%s for the VNC server on %s\n", web, l.Addr(), vnc)
	server := &http.Server{Handler: WebHandler(web, vnc), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: log.New(os.Stderr, "", log.LstdFlags)}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(l); ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "novnc:", err)
		return 1
	}
	return 0
}

// WebHandler serves noVNC from a directory, and the VNC server at an address
// under /websockify. Where the directory has no page of its own, as npm's
// package has none, there is a small one.
func WebHandler(web, vnc string) http.Handler {
	mux := http.NewServeMux()
	files := http.FileServer(http.Dir(web))
	static := func(kind string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind+"; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = w.Write(body)
		}
	}
	page := static("text/html", vncPage)
	mux.Handle("GET /", files)
	mux.HandleFunc("GET /{$}", page)
	mux.HandleFunc("GET /daytona-vnc.js", static("text/javascript", vncScript))
	for _, name := range []string{"vnc.html", "vnc_lite.html"} {
		if _, err := os.Stat(filepath.Join(web, name)); err != nil {
			mux.HandleFunc("GET /"+name, page)
		}
	}
	turn := make(chan struct{}, vncClients)
	mux.HandleFunc("GET /websockify", func(w http.ResponseWriter, r *http.Request) {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		default:
			http.Error(w, "too many browsers look on", http.StatusServiceUnavailable)
			return
		}
		if !sameOrigin(r) {
			// Else any page that a browser in the sandbox shows could take the
			// desktop over.
			http.Error(w, "a page of another origin", http.StatusForbidden)
			return
		}
		serveVNC(w, r, vnc)
	})
	return mux
}

// sameOrigin says whether a WebSocket is asked for by a page from here: under
// the name that the client knows, of which a proxy tells.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true // no browser
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && (u.Host == r.Host || u.Host == r.Header.Get("X-Forwarded-Host"))
}

func serveVNC(w http.ResponseWriter, r *http.Request, vnc string) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	server, err := dialer.DialContext(r.Context(), "tcp", vnc)
	if err != nil {
		http.Error(w, "the VNC server does not answer", http.StatusBadGateway)
		return
	}
	defer server.Close()
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}, InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer ws.CloseNow()
	ws.SetReadLimit(vncMessage)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		for {
			_, from, err := ws.Reader(ctx)
			if err != nil {
				return
			}
			if _, err := io.Copy(server, from); err != nil {
				return
			}
		}
	}()
	context.AfterFunc(ctx, func() { server.Close() })
	buf := make([]byte, vncBuffer)
	for {
		n, err := server.Read(buf)
		if n > 0 && ws.Write(ctx, websocket.MessageBinary, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = ws.Close(websocket.StatusNormalClosure, "the VNC server has ended")
			return
		}
	}
}
