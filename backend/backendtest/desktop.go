package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	_ "image/png" // what screenshots are
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

// checkNoComputerUse demands an error that says what is missing where the image
// has no desktop.
func checkNoComputerUse(c *env) {
	sb := c.create()
	desktop := sb.ComputerUse()
	_, err := desktop.Screenshot(c.ctx, image.Rectangle{}, nil)
	c.wantKind("a screenshot of a desktop that has not been started", err, daytona.KindState)
	status, err := desktop.Status(c.ctx)
	c.try("status", err)
	equal(c, "status before the start", status, daytona.DesktopInactive)
	if c.sh(sb, "command -v Xvfb || true") != "" {
		return // checkComputerUse starts it
	}
	err = desktop.Start(c.ctx)
	c.wantKind("start a desktop without an X server", err, daytona.KindUnsupported)
	if err == nil || !strings.Contains(err.Error(), "Xvfb") {
		c.Errorf("the error does not name what is missing: %v", err)
	}
}

// checkComputerUse drives a program on the desktop.
func checkComputerUse(c *env) {
	sb := c.create(func(s *daytona.Spec) {
		if c.h.DesktopImage != "" {
			s.Image = c.h.DesktopImage
		}
	})
	if c.sh(sb, "command -v Xvfb || true") == "" {
		c.Skip("the image has no desktop, and the harness names no DesktopImage")
	}
	desktop := sb.ComputerUse()
	err := desktop.Start(c.ctx)
	c.try("start", err)
	displays, err := desktop.Displays(c.ctx)
	c.try("displays", err)
	if len(displays) != 1 || displays[0].Bounds != image.Rect(0, 0, 1024, 768) {
		c.Fatalf("displays %+v, want one of 1024 x 768", displays)
	}
	at := image.Pt(400, 300)
	c.try("move the mouse", desktop.MoveMouse(c.ctx, at))
	if got, err := desktop.MousePosition(c.ctx); err != nil || got != at {
		c.Errorf("the mouse is at %v, %v; want %v", got, err, at)
	}
	c.wantKind("a click beside the screen", desktop.Click(c.ctx, image.Pt(5000, 1), "", false), daytona.KindInvalid)
	pixel := func(at image.Point) (color.RGBA, error) {
		shot, err := desktop.Screenshot(c.ctx, image.Rectangle{Min: at, Max: at.Add(image.Pt(1, 1))}, nil)
		if err != nil {
			return color.RGBA{}, err
		}
		img, _, err := image.Decode(bytes.NewReader(shot.Data))
		if err != nil {
			return color.RGBA{}, err
		}
		return color.RGBAModel.Convert(img.At(img.Bounds().Min.X, img.Bounds().Min.Y)).(color.RGBA), nil
	}
	_, err = pixel(at)
	c.try("screenshot", err)

	if c.sh(sb, "command -v xterm && command -v icewm || true") != "" {
		c.startInBackground(sb, `exec xterm -geometry 40x10+200+150 -bg '#123456' -cr '#123456' -title 'the terminal' -e sh -c 'read line; echo "$line" >typed; exec sleep 1000'`)
		var window daytona.Window
		// What makes fonts ready the first time takes a while.
		c.eventually(time.Minute, "the terminal's window", func() error {
			windows, err := desktop.Windows(c.ctx)
			if err != nil {
				return err
			}
			for _, w := range windows {
				if w.Title == "the terminal" && w.Active {
					window = w
					return nil
				}
			}
			return fmt.Errorf("windows %+v", windows)
		})
		inside := window.Bounds.Max.Sub(image.Pt(30, 15))
		c.eventually(10*time.Second, "the terminal's colour", func() error {
			got, err := pixel(inside)
			if err == nil && got != (color.RGBA{0x12, 0x34, 0x56, 0xff}) {
				err = fmt.Errorf("%v at %v", got, inside)
			}
			return err
		})
		c.try("click", desktop.Click(c.ctx, inside, "left", false))
		c.try("type", desktop.Type(c.ctx, "typed by Ada\n", 0))
		equal(c, "what was typed", strings.TrimSpace(c.waitForFile(sb, "typed")), "typed by Ada")
	}

	c.try("stop", desktop.Stop(c.ctx))
	if status, err := desktop.Status(c.ctx); err != nil || status != daytona.DesktopInactive {
		c.Errorf("status after the stop: %v, %v", status, err)
	}
	if left := c.processesLike(sb, "Xvfb"); len(left) > 0 {
		c.Errorf("after the stop there are still %q", left)
	}
	_, err = desktop.Windows(c.ctx)
	if !errors.Is(err, daytona.ErrState) {
		c.Errorf("windows after the stop: %v", err)
	}
}
