package desktop

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/jezek/xgb/xproto"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// windowLimit is how many windows are listed, titleLimit how much of a
	// title, in bytes.
	windowLimit = 1000
	titleLimit  = 1000
)

// atom is the number of a name; 0 if nobody has used it yet.
func (s *screen) atom(name string) xproto.Atom {
	reply, err := xproto.InternAtom(s.conn, true, uint16(len(name)), name).Reply()
	if err != nil {
		return 0
	}
	return reply.Atom
}

// property returns up to limit bytes of a window's property.
func (s *screen) property(w xproto.Window, name xproto.Atom, limit int) []byte {
	if name == 0 {
		return nil
	}
	reply, err := xproto.GetProperty(s.conn, false, w, name, xproto.GetPropertyTypeAny, 0, uint32(limit+3)/4).Reply()
	if err != nil {
		return nil
	}
	return reply.Value[:min(len(reply.Value), limit)]
}

// ids are window numbers in a property.
func ids(b []byte) []xproto.Window {
	var list []xproto.Window
	for ; len(b) >= 4; b = b[4:] {
		list = append(list, xproto.Window(binary.LittleEndian.Uint32(b)))
	}
	return list
}

// windows lists what the window manager manages, from back to front, or, where
// there is none, what is on the screen.
func (s *screen) windows() (wire.WindowList, error) {
	stacking := ids(s.property(s.root, s.atom("_NET_CLIENT_LIST_STACKING"), 4*windowLimit))
	if len(stacking) == 0 {
		stacking = ids(s.property(s.root, s.atom("_NET_CLIENT_LIST"), 4*windowLimit))
	}
	managed := s.manager() != 0
	if !managed {
		tree, err := xproto.QueryTree(s.conn, s.root).Reply()
		if err != nil {
			return wire.WindowList{}, fmt.Errorf("list the windows: %w", err)
		}
		stacking = tree.Children[:min(len(tree.Children), windowLimit)]
	}
	var active xproto.Window
	if a := ids(s.property(s.root, s.atom("_NET_ACTIVE_WINDOW"), 4)); len(a) > 0 {
		active = a[0]
	}
	netName := s.atom("_NET_WM_NAME")
	list := wire.WindowList{Windows: []wire.Window{}}
	for _, id := range stacking {
		// One that has gone meanwhile is left out.
		attributes, err := xproto.GetWindowAttributes(s.conn, id).Reply()
		if err != nil || !managed && (attributes.MapState != xproto.MapStateViewable || attributes.Class != xproto.WindowClassInputOutput) {
			continue
		}
		g, err := xproto.GetGeometry(s.conn, xproto.Drawable(id)).Reply()
		if err != nil {
			continue
		}
		at, err := xproto.TranslateCoordinates(s.conn, id, s.root, 0, 0).Reply()
		if err != nil {
			continue
		}
		title := s.property(id, netName, titleLimit)
		if len(title) == 0 {
			title = s.property(id, xproto.AtomWmName, titleLimit)
		}
		list.Windows = append(list.Windows, wire.Window{
			ID: int(id), Title: strings.ToValidUTF8(string(title), "�"), IsActive: id == active,
			Rectangle: wire.Rectangle{X: int(at.DstX), Y: int(at.DstY), Width: int(g.Width), Height: int(g.Height)},
		})
	}
	list.Count = len(list.Windows)
	return list, nil
}

// manager is the window by which a running window manager is known (EWMH); 0 if
// there is none. What a dead one left behind does not count.
func (s *screen) manager() xproto.Window {
	check := s.atom("_NET_SUPPORTING_WM_CHECK")
	w := ids(s.property(s.root, check, 4))
	if len(w) == 0 {
		return 0
	}
	if itself := ids(s.property(w[0], check, 4)); len(itself) == 0 || itself[0] != w[0] {
		return 0
	}
	return w[0]
}

// awaitManager returns when there is a window manager.
func (s *screen) awaitManager() error {
	err := xproto.ChangeWindowAttributesChecked(s.conn, s.root, xproto.CwEventMask, []uint32{xproto.EventMaskPropertyChange}).Check()
	if err != nil {
		return fmt.Errorf("watch the root window: %w", err)
	}
	for s.manager() == 0 {
		event, err := s.conn.WaitForEvent()
		if event == nil && err == nil {
			return fmt.Errorf("the X server is gone")
		}
	}
	return nil
}
