package desktop

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"math"
	"net/http"
	"net/url"
	"strconv"

	"github.com/jezek/xgb/xfixes"
	"github.com/jezek/xgb/xproto"
	"golang.org/x/image/draw"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// shot is what a screenshot request asks for.
type shot struct {
	region  *wire.Rectangle
	cursor  bool
	jpeg    bool
	quality int
	scale   float64
	level   png.CompressionLevel
}

// parseShot reads a screenshot request's query.
func parseShot(q url.Values, region, compressed bool) (shot, error) {
	want := shot{quality: 85, scale: 1, level: png.BestSpeed}
	number := func(name string) (int, error) {
		n, err := strconv.Atoi(q.Get(name))
		if err != nil {
			return 0, bad("%s is %.100q: want a whole number", name, q.Get(name))
		}
		return n, nil
	}
	if v := q.Get("showCursor"); v != "" {
		var err error
		if want.cursor, err = strconv.ParseBool(v); err != nil {
			return want, bad("showCursor is %.100q: want true or false", v)
		}
	}
	if region {
		want.region = new(wire.Rectangle)
		for name, to := range map[string]*int{"x": &want.region.X, "y": &want.region.Y, "width": &want.region.Width, "height": &want.region.Height} {
			n, err := number(name)
			if err != nil {
				return want, err
			}
			*to = n
		}
	}
	if !compressed {
		return want, nil
	}
	want.level = png.DefaultCompression
	switch f := q.Get("format"); f {
	case "", "png":
	case "jpeg", "jpg":
		want.jpeg = true
	default:
		return want, bad("format %.100q: there are png and jpeg", f)
	}
	if q.Get("quality") != "" {
		n, err := number("quality")
		if err != nil {
			return want, err
		}
		if n < 1 || n > 100 {
			return want, bad("quality %d: must be from 1 to 100", n)
		}
		want.quality = n
	}
	if v := q.Get("scale"); v != "" {
		f, err := strconv.ParseFloat(v, 64)
		// Written so that NaN is refused, too.
		if err != nil || !(f >= 0.1 && f <= 1) {
			return want, bad("scale %.100q: must be from 0.1 to 1", v)
		}
		want.scale = f
	}
	return want, nil
}

func (s *screen) screenshot(r *http.Request, region, compressed bool) (any, error) {
	want, err := parseShot(r.URL.Query(), region, compressed)
	if err != nil {
		return nil, err
	}
	area := s.bounds
	if g := want.region; g != nil {
		// Checked before they are added up.
		if g.X < 0 || g.Y < 0 || g.Width < 1 || g.Height < 1 || g.X >= area.Dx() || g.Y >= area.Dy() || g.Width > area.Dx()-g.X || g.Height > area.Dy()-g.Y {
			return nil, bad("the region of %d x %d at (%d, %d) is not on the screen, which is %d x %d", g.Width, g.Height, g.X, g.Y, area.Dx(), area.Dy())
		}
		area = image.Rect(g.X, g.Y, g.X+g.Width, g.Y+g.Height)
	}
	img, err := s.picture(area)
	if err != nil {
		return nil, err
	}
	if want.cursor {
		if err := s.drawCursor(img); err != nil {
			return nil, err
		}
	}
	at, err := s.pointer()
	if err != nil {
		return nil, err
	}
	var file bytes.Buffer
	if err := encode(&file, img, want); err != nil {
		return nil, fmt.Errorf("encode the picture: %w", err)
	}
	return wire.Screenshot{Screenshot: base64.StdEncoding.EncodeToString(file.Bytes()), CursorPosition: &at, SizeBytes: file.Len()}, nil
}

func encode(to *bytes.Buffer, img *image.RGBA, want shot) error {
	if want.scale < 1 {
		scaled := func(n int) int { return max(1, int(math.Round(float64(n)*want.scale))) }
		small := image.NewRGBA(image.Rect(0, 0, scaled(img.Rect.Dx()), scaled(img.Rect.Dy())))
		// With a kernel, for small text to stay legible.
		draw.BiLinear.Scale(small, small.Rect, img, img.Rect, draw.Src, nil)
		img = small
	}
	if want.jpeg {
		return jpeg.Encode(to, img, &jpeg.Options{Quality: want.quality})
	}
	e := png.Encoder{CompressionLevel: want.level}
	return e.Encode(to, img)
}

// picture reads the pixels of an area.
func (s *screen) picture(area image.Rectangle) (*image.RGBA, error) {
	w, h := area.Dx(), area.Dy()
	reply, err := xproto.GetImage(s.conn, xproto.ImageFormatZPixmap, xproto.Drawable(s.root),
		int16(area.Min.X), int16(area.Min.Y), uint16(w), uint16(h), math.MaxUint32).Reply()
	if err != nil {
		return nil, fmt.Errorf("read the screen: %w", err)
	}
	bits := 0
	for _, f := range s.setup.PixmapFormats {
		if f.Depth == reply.Depth {
			bits = int(f.BitsPerPixel)
		}
	}
	if bits != 32 || reply.Depth < 24 {
		return nil, fmt.Errorf("the screen has %d bits of colour in %d: only 24 in 32 are supported", reply.Depth, bits)
	}
	if len(reply.Data) < 4*w*h {
		return nil, fmt.Errorf("the X server gave %d bytes for %d x %d pixels", len(reply.Data), w, h)
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if s.setup.ImageByteOrder == xproto.ImageOrderMSBFirst {
		order = binary.BigEndian
	}
	img := image.NewRGBA(area)
	for i := 0; i < 4*w*h; i += 4 {
		p, v := img.Pix[i:i+4:i+4], order.Uint32(reply.Data[i:])
		p[0], p[1], p[2], p[3] = byte(v>>16), byte(v>>8), byte(v), 0xff
	}
	return img, nil
}

// drawCursor draws the mouse, which is not part of the picture that an X server
// gives.
func (s *screen) drawCursor(img *image.RGBA) error {
	if err := xfixes.Init(s.conn); err != nil {
		return fmt.Errorf("the X server does not show its cursor (XFIXES): %w", err)
	}
	if _, err := xfixes.QueryVersion(s.conn, 4, 0).Reply(); err != nil {
		return fmt.Errorf("ask for XFIXES: %w", err)
	}
	c, err := xfixes.GetCursorImage(s.conn).Reply()
	if err != nil {
		return fmt.Errorf("read the cursor: %w", err)
	}
	w, h := int(c.Width), int(c.Height)
	if len(c.CursorImage) < w*h {
		return fmt.Errorf("the X server gave %d pixels for a cursor of %d x %d", len(c.CursorImage), w, h)
	}
	at := image.Pt(int(c.X)-int(c.Xhot), int(c.Y)-int(c.Yhot))
	cursor := image.NewRGBA(image.Rectangle{Min: at, Max: at.Add(image.Pt(w, h))})
	for i, v := range c.CursorImage[:w*h] {
		// Colours come multiplied with the opacity, as image.RGBA has them.
		a := byte(v >> 24)
		p := cursor.Pix[4*i : 4*i+4 : 4*i+4]
		p[0], p[1], p[2], p[3] = min(byte(v>>16), a), min(byte(v>>8), a), min(byte(v), a), a
	}
	draw.Draw(img, cursor.Rect, cursor, at, draw.Over)
	return nil
}
