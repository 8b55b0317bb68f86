package desktop

import (
	"context"
	"errors"
	"fmt"
	"image"
	"net"
	"net/http"
	"time"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xproto"
	"github.com/jezek/xgb/xtest"

	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// screen is the connection to the X server that one request has.
type screen struct {
	ctx    context.Context
	conn   *xgb.Conn
	setup  *xproto.SetupInfo
	root   xproto.Window
	bounds image.Rectangle
	stop   func() bool
}

// open connects to the X server. The connection ends with ctx.
func open(ctx context.Context, name string) (*screen, error) {
	n, err := display.Parse(name)
	if err != nil {
		return nil, bad("%v", err)
	}
	gone := func(err error) error {
		return &refusal{http.StatusServiceUnavailable, wire.CodeDesktopStopped, fmt.Sprintf("the X server of display %s does not answer: %v", name, err)}
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	socket, err := dialer.DialContext(ctx, "unix", display.Socket(n))
	if err != nil {
		return nil, gone(err)
	}
	s := &screen{ctx: ctx}
	// xgb knows of no contexts, but all that waits ends with the socket.
	s.stop = context.AfterFunc(ctx, func() { socket.Close() })
	if s.conn, err = xgb.NewConnNet(socket); err != nil {
		s.stop()
		socket.Close()
		return nil, gone(err)
	}
	s.setup = xproto.Setup(s.conn)
	if len(s.setup.Roots) == 0 {
		s.close()
		return nil, gone(errors.New("it has no screen"))
	}
	root := s.setup.DefaultScreen(s.conn)
	s.root = root.Root
	s.bounds = image.Rect(0, 0, int(root.WidthInPixels), int(root.HeightInPixels))
	return s, nil
}

func (s *screen) close() {
	s.stop()
	s.conn.Close()
}

// sleep waits, unless the request is given up.
func (s *screen) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// on checks that a point is on the screen.
func (s *screen) on(what string, x, y int) error {
	if !image.Pt(x, y).In(s.bounds) {
		return bad("%s (%d, %d) is not on the screen, which is %d x %d", what, x, y, s.bounds.Dx(), s.bounds.Dy())
	}
	return nil
}

// The kinds of input that XTEST can fake.
const (
	keyPress      = xproto.KeyPress
	keyRelease    = xproto.KeyRelease
	buttonPress   = xproto.ButtonPress
	buttonRelease = xproto.ButtonRelease
	motion        = xproto.MotionNotify
)

// input readies the extension for fake.
func (s *screen) input() error {
	if err := xtest.Init(s.conn); err != nil {
		return fmt.Errorf("the X server takes no input from programs (XTEST): %w", err)
	}
	return nil
}

// event is what somebody does with a key or a button, or the mouse.
type event struct {
	kind, detail byte
	x, y         int
}

// fake makes the X server believe that somebody did all of that. Nothing is
// awaited in between: two clicks become one double click however busy the
// machine is, and no key stays pressed when the request is given up.
func (s *screen) fake(events ...event) error {
	var sent []xtest.FakeInputCookie
	for _, e := range events {
		sent = append(sent, xtest.FakeInputChecked(s.conn, e.kind, e.detail, 0, s.root, int16(e.x), int16(e.y), 0))
	}
	var errs []error
	for _, c := range sent {
		errs = append(errs, c.Check())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("fake input: %w", err)
	}
	return nil
}

func (s *screen) pointer() (wire.Point, error) {
	p, err := xproto.QueryPointer(s.conn, s.root).Reply()
	if err != nil {
		return wire.Point{}, fmt.Errorf("ask for the mouse: %w", err)
	}
	return wire.Point{X: int(p.RootX), Y: int(p.RootY)}, nil
}

func (s *screen) displays() wire.DisplayList {
	list := wire.DisplayList{Displays: []wire.Display{}}
	for i, root := range s.setup.Roots {
		list.Displays = append(list.Displays, wire.Display{
			ID: i, IsActive: root.Root == s.root,
			Rectangle: wire.Rectangle{Width: int(root.WidthInPixels), Height: int(root.HeightInPixels)},
		})
	}
	return list
}
