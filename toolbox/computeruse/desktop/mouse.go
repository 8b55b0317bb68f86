package desktop

import (
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// dragStep is how far the mouse goes at once when it drags, in pixels, and
	// dragPause how long it then rests: programs take it for a drag only if it
	// moves with the button held.
	dragStep  = 16
	dragPause = 4 * time.Millisecond
	// dragSteps bounds the two for long ways.
	dragSteps = 200
	// scrollLimit of one request.
	scrollLimit = 100
)

// button is the number of a button.
func button(name string) (byte, error) {
	switch name {
	case "", "left":
		return 1, nil
	case "middle", "center":
		return 2, nil
	case "right":
		return 3, nil
	}
	return 0, bad("button %q: there are left, right and middle", name)
}

func (s *screen) moveTo(x, y int) error { return s.fake(event{motion, 0, x, y}) }

func (s *screen) move(p *wire.Point) (any, error) {
	if err := s.on("position", p.X, p.Y); err != nil {
		return nil, err
	}
	if err := s.input(); err != nil {
		return nil, err
	}
	if err := s.moveTo(p.X, p.Y); err != nil {
		return nil, err
	}
	return s.pointer()
}

func (s *screen) click(req *wire.MouseClickRequest) (any, error) {
	b, err := button(req.Button)
	if err == nil {
		err = s.on("position", req.X, req.Y)
	}
	if err == nil {
		err = s.input()
	}
	if err == nil {
		err = s.moveTo(req.X, req.Y)
	}
	if err != nil {
		return nil, err
	}
	events := []event{{kind: buttonPress, detail: b}, {kind: buttonRelease, detail: b}}
	if req.Double {
		events = append(events, events...)
	}
	if err := s.fake(events...); err != nil {
		return nil, err
	}
	return s.pointer()
}

func (s *screen) drag(req *wire.MouseDragRequest) (_ any, err error) {
	b, err := button(req.Button)
	if err == nil {
		err = s.on("start", req.StartX, req.StartY)
	}
	if err == nil {
		err = s.on("end", req.EndX, req.EndY)
	}
	if err == nil {
		err = s.input()
	}
	if err == nil {
		err = s.moveTo(req.StartX, req.StartY)
	}
	if err != nil {
		return nil, err
	}
	if err := s.fake(event{kind: buttonPress, detail: b}); err != nil {
		return nil, err
	}
	held := true
	defer func() {
		if held {
			_ = s.fake(event{kind: buttonRelease, detail: b})
		}
	}()
	dx, dy := req.EndX-req.StartX, req.EndY-req.StartY
	steps := min(max(4, max(abs(dx), abs(dy))/dragStep), dragSteps)
	for i := 1; i <= steps; i++ {
		if err := s.sleep(dragPause); err != nil {
			return nil, err
		}
		if err := s.moveTo(req.StartX+dx*i/steps, req.StartY+dy*i/steps); err != nil {
			return nil, err
		}
	}
	if err := s.sleep(dragPause); err != nil {
		return nil, err
	}
	held = false
	if err := s.fake(event{kind: buttonRelease, detail: b}); err != nil {
		return nil, err
	}
	return s.pointer()
}

func abs(n int) int { return max(n, -n) }

func (s *screen) scroll(req *wire.MouseScrollRequest) (any, error) {
	amount := 1
	if req.Amount != nil {
		amount = *req.Amount
	}
	// A turn of the wheel is a click of a button.
	var wheel byte
	switch req.Direction {
	case "up":
		wheel = 4
	case "down":
		wheel = 5
	default:
		return nil, bad("direction %q: there are up and down", req.Direction)
	}
	if amount < 0 || amount > scrollLimit {
		return nil, bad("amount %d: must be from 0 to %d", amount, scrollLimit)
	}
	err := s.on("position", req.X, req.Y)
	if err == nil {
		err = s.input()
	}
	if err == nil {
		err = s.moveTo(req.X, req.Y)
	}
	for range amount {
		if err == nil {
			err = s.fake(event{kind: buttonPress, detail: wheel}, event{kind: buttonRelease, detail: wheel})
		}
	}
	if err != nil {
		return nil, err
	}
	return wire.ScrollResponse{Success: true}, nil
}
