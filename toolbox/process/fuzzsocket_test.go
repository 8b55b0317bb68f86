package process_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// clientFrame is a frame as clients send it, with a mask of zeros.
func clientFrame(first byte, payload string) string {
	head := []byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}
	if len(payload) > 125 {
		head = append(binary.BigEndian.AppendUint16([]byte{first, 0x80 | 126}, uint16(len(payload))), 0, 0, 0, 0)
	}
	return string(head) + payload
}

// FuzzCommandSocket sends whatever it likes after the handshake of a command's
// WebSocket. The agent must answer in frames, end the connection, say why where
// it was the client's fault, and go on.
func FuzzCommandSocket(f *testing.F) {
	f.Add(clientFrame(0x82, "\x00hello") + clientFrame(0x82, "\x00"))                          // input, and its end
	f.Add(clientFrame(0x81, `{"signal":"TERM"}`) + clientFrame(0x81, `{"cols":80,"rows":24}`)) // control
	f.Add(clientFrame(0x81, `{"signal":`))                                                     // no JSON
	f.Add(clientFrame(0x82, "\x07"))                                                           // no stream
	f.Add(clientFrame(0x89, "ping") + clientFrame(0x88, "\x03\xe8bye"))
	f.Add(clientFrame(0x02, "\x00part") + clientFrame(0x89, "") + clientFrame(0x80, "the rest"))
	f.Add(clientFrame(0x80, "nothing to continue") + clientFrame(0xc1, "reserved bit") + clientFrame(0x83, "reserved opcode"))
	f.Add("\x81\x05hello")                                            // without a mask
	f.Add("\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00") // longer than everything
	f.Add(clientFrame(0x81, "\xff\xfe") + clientFrame(0x88, "\x00"))

	a := startAgent(f, process.Options{})
	spec, err := wire.EncodeCommandSpec(wire.CommandRequest{Args: []string{"cat"}})
	if err != nil {
		f.Fatal(err)
	}
	handshake := "GET " + wire.CommandPath + "?spec=" + spec + " HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\n" +
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	f.Fuzz(func(t *testing.T, frames string) {
		conn, err := net.Dial("unix", a.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // far more than it takes: a connection that hangs
		if _, err := io.WriteString(conn, handshake); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("handshake: %v %v", resp, err)
		}
		go func() {
			_, _ = io.WriteString(conn, frames) // it may have ended by then
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		for {
			first, payload, err := serverFrame(r)
			// The agent drops the connection of a client that has gone.
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			switch first {
			case 0x81: // an event
				if !utf8.Valid(payload) {
					t.Errorf("event %q", payload)
				}
			case 0x82: // output
				if len(payload) < 2 || payload[0] != wire.FrameStdout && payload[0] != wire.FrameStderr {
					t.Errorf("output %q", payload)
				}
			case 0x8a: // pong
			case 0x88:
				if len(payload) < 2 {
					t.Error("the connection was closed without a reason")
				}
				return
			default:
				t.Fatalf("a frame begins with %#x", first)
			}
		}
	})
}

// serverFrame reads a frame, which has no mask.
func serverFrame(r io.Reader) (first byte, payload []byte, err error) {
	var head [10]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1])
	switch head[1] {
	case 126:
		_, err = io.ReadFull(r, head[8:])
		n = uint64(binary.BigEndian.Uint16(head[8:]))
	case 127:
		_, err = io.ReadFull(r, head[2:])
		n = binary.BigEndian.Uint64(head[2:])
	}
	if err != nil {
		return 0, nil, err
	}
	if n > wire.CommandFrameLimit {
		return 0, nil, fmt.Errorf("a frame of %d bytes, or with a mask", n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return head[0], payload, err
}
