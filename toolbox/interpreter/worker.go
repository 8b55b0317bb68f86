package interpreter

import (
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/chart"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

//go:embed driver.py
var pythonDriver string

//go:embed driver.js
var nodeDriver string

// The programs that an interpreter is started with read the rest from
// descriptor 3: the list of processes stays readable.
const (
	pythonLoader = `import os
def r(n):
 b=b""
 while len(b)<n:
  c=os.read(3,n-len(b))
  if not c:os._exit(0)
  b+=c
 return b
t=lambda:r(int.from_bytes(r(4),"big")).decode()
d={"__name__":"daytona"}
exec(compile(t(),"<daytona>","exec"),d)
d["start"](3,t())`
	nodeLoader = `{const fs=require("node:fs"),r=n=>{const b=Buffer.alloc(n);for(let o=0;o<n;){const k=fs.readSync(3,b,o,n-o);if(!k)process.exit();o+=k}return b};
require("node:vm").compileFunction(r(r(4).readUInt32BE()).toString(),["fd","importer","require"],{filename:"daytona"})(3,n=>import(n),require)}`
)

const (
	// frameLimit bounds a frame of an interpreter in bytes.
	frameLimit = 16 << 20
	// startLimit bounds the start of an interpreter, with what its user has
	// put into its start-up files.
	startLimit = time.Minute
	// interruptGrace is between an interrupt and the end of an interpreter
	// that does not heed it.
	interruptGrace = 2 * time.Second
	// settleTime is how long the output of an interpreter that has ended is
	// still read.
	settleTime = 100 * time.Millisecond
	// pieceSize is in what pieces output is read and sent, in bytes.
	pieceSize = 64 << 10
	// textLimit bounds the fields of an exception in bytes.
	textLimit = 512 << 10
)

// sink gets what a run says. Output of one stream comes in order; both streams
// and the messages come at the same time. A sink that blocks stops the run; once
// hurry was called it must not do so for long.
type sink interface {
	output(stream int, p []byte)
	message(m *wire.InterpreterMessage)
	hurry()
}

// frame is what an interpreter sends. It is the code's to forge.
type frame struct {
	Type  string          `json:"type"`
	Text  string          `json:"text"`
	ID    uint64          `json:"id"`
	Error *exception      `json:"error"`
	Data  json.RawMessage `json:"data"`
	Chart json.RawMessage `json:"chart"`
}

type exception struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback"`
}

func (e *exception) message() *wire.InterpreterMessage {
	return &wire.InterpreterMessage{Type: wire.InterpreterError, Name: clip(e.Name), Value: clip(e.Value), Traceback: clip(e.Traceback)}
}

func clip(s string) string { return wire.Clip(s, textLimit) }

// parseFrame checks what is in a frame.
func parseFrame(b []byte) (*frame, error) {
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	object := func(v json.RawMessage) bool { return len(v) > 0 && v[0] == '{' }
	switch f.Type {
	case "ready", "failed", "done":
	case wire.InterpreterResult:
		if !object(f.Data) {
			return nil, errors.New("a result without data")
		}
	case wire.InterpreterChart:
		if !object(f.Chart) {
			return nil, errors.New("a chart without an object")
		}
	default:
		return nil, fmt.Errorf("type %.20q", f.Type)
	}
	return &f, nil
}

// worker is one interpreter. Whatever its code does to it ends in exited.
type worker struct {
	service *Service
	process *process.Process
	// environ is what it was started with.
	environ []string
	control *os.File
	outputs [2]*output
	// replies are frames about requests.
	replies chan *frame
	current atomic.Pointer[sink]
	last    uint64 // id of the last request

	killOnce sync.Once
	// exited is closed when it and what it started are dead; then status is
	// set. fault says why it was killed, if the agent did.
	exited chan struct{}
	status process.Status
	fault  atomic.Pointer[string]
}

// output is a pipe that is read all the time, lest threads that go on printing
// after a run wait for ever. Between runs it is dropped.
type output struct {
	file *os.File
	// settled gets a value when all that was there has been delivered.
	settled chan struct{}
	eof     chan struct{}
}

// start starts an interpreter that is not ready yet.
func (s *Service) start(language, dir string) (_ *worker, err error) {
	w := &worker{
		service: s, replies: make(chan *frame), exited: make(chan struct{}),
		environ: s.spawner.Environ(nil, ""),
	}
	var theirs []int
	defer func() {
		for _, fd := range theirs {
			unix.Close(fd)
		}
		if err != nil {
			for _, o := range w.outputs {
				if o != nil {
					o.file.Close()
				}
			}
			if w.control != nil {
				w.control.Close()
			}
		}
	}()
	spec := process.Spec{Args: []string{"python3", "-u", "-X", "utf8", "-c", pythonLoader}, Dir: dir}
	programs := []string{pythonDriver, chart.Source}
	if language != python {
		spec.Args = []string{"node", "-e", nodeLoader}
		programs = []string{nodeDriver}
	}
	var pair [2]int
	if pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs = append(theirs, pair[1])
	spec.ExtraFD = pair[1]
	if w.control, err = polled(pair[0], "control"); err != nil {
		return nil, err
	}
	for i, to := range []*int{&spec.Stdout, &spec.Stderr} {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		theirs = append(theirs, fds[1])
		// Larger pipes mean fewer wake-ups; the limit of the account's pipes
		// may refuse.
		_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, 4*pieceSize)
		*to = fds[1]
		f, err := polled(fds[0], "output")
		if err != nil {
			return nil, err
		}
		w.outputs[i] = &output{file: f, settled: make(chan struct{}, 1), eof: make(chan struct{})}
	}
	if w.process, err = s.spawner.Start(&spec); err != nil {
		return nil, err
	}
	go w.wait()
	go w.receive()
	for i := range w.outputs {
		go w.copy(i)
	}
	for _, p := range programs {
		if err := w.write([]byte(p)); err != nil {
			w.kill("it does not read its program")
			return nil, w.died()
		}
	}
	return w, nil
}

func polled(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// wait buries the interpreter with all that it has started.
func (w *worker) wait() {
	status := w.process.Wait()
	w.process.KillTree()
	w.control.Close()
	for _, o := range w.outputs {
		// Somebody who has left the tree may hold it.
		process.Settle(o.file, settleTime)
		<-o.eof
	}
	w.status = status
	close(w.exited)
}

// kill ends it for a reason. It does not wait.
func (w *worker) kill(why string) {
	w.killOnce.Do(func() {
		w.fault.Store(&why)
		go w.process.KillTree()
	})
}

// died waits for the end and says how it came.
func (w *worker) died() error {
	<-w.exited
	if why := w.fault.Load(); why != nil {
		return fmt.Errorf("the interpreter was killed: %s", *why)
	}
	if w.status.Signal != "" {
		return fmt.Errorf("the interpreter was ended by %s", w.status.Signal)
	}
	return fmt.Errorf("the interpreter exited with code %d", w.status.Code)
}

// dead says whether it has ended or is about to.
func (w *worker) dead() bool {
	select {
	case <-w.exited:
		return true
	default:
		return w.fault.Load() != nil
	}
}

// write sends a frame. It may block; a kill ends that.
func (w *worker) write(b []byte) error {
	_, err := w.control.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

// receive takes the interpreter's frames. One that breaks the protocol, or
// closes its end, is done for: its code has laid hands on the descriptor.
func (w *worker) receive() {
	for {
		f, err := readFrame(w.control)
		if err == io.EOF {
			// It has ended, as a rule, which wait finds, or closed all of its
			// descriptors.
			select {
			case <-w.process.Done():
			case <-time.After(settleTime):
				w.kill("its code has closed the connection to the agent")
			}
			return
		}
		if err != nil {
			w.kill("its code has written to the connection to the agent: " + err.Error())
			return
		}
		switch f.Type {
		case wire.InterpreterResult, wire.InterpreterChart:
			if s := w.current.Load(); s != nil {
				(*s).message(&wire.InterpreterMessage{Type: f.Type, Data: f.Data, Chart: f.Chart})
			}
		default:
			select {
			case w.replies <- f:
			case <-w.exited:
				return
			}
		}
	}
}

// readFrame reads a frame; io.EOF is the end before one.
func readFrame(r io.Reader) (*frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("half a frame")
		}
		return nil, io.EOF // an error of the descriptor is its end, too
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > frameLimit {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	// Room as it comes: the length is only a promise.
	var b []byte
	for part := uint32(64 << 10); uint32(len(b)) < n; part *= 2 {
		at := len(b)
		b = slices.Grow(b, int(min(part, n-uint32(at))))[:at+int(min(part, n-uint32(at)))]
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, errors.New("half a frame")
		}
	}
	return parseFrame(b)
}

// copy passes a stream to whoever runs code, until its end.
func (w *worker) copy(i int) {
	o := w.outputs[i]
	defer o.file.Close()
	defer close(o.eof)
	buf := make([]byte, pieceSize)
	for {
		open, _ := process.CopyOutput(o.file, buf, func(p []byte) error {
			if s := w.current.Load(); s != nil {
				(*s).output(i, p)
			}
			return nil
		})
		select {
		case <-w.process.Done():
			return // held by somebody who has left the tree
		default:
		}
		if !open {
			return
		}
		_ = o.file.SetReadDeadline(time.Time{})
		o.settled <- struct{}{}
	}
}

// settle waits until what has been printed is delivered.
func (w *worker) settle() {
	for _, o := range w.outputs {
		process.Settle(o.file, 0)
	}
	for _, o := range w.outputs {
		select {
		case <-o.settled:
		case <-o.eof:
		}
	}
}

// ready waits for the answer to a start or a setup.
func (w *worker) ready(ctx context.Context) error {
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	select {
	case f := <-w.replies:
		switch f.Type {
		case "ready":
			return nil
		case "failed":
			w.kill("it is of no use")
			return errors.New(clip(f.Text))
		}
		w.kill("it spoke out of turn")
	case <-timer.C:
		w.kill("it was not ready in time")
	case <-ctx.Done():
		w.kill("nobody waits for it")
		return context.Cause(ctx)
	case <-w.exited:
	}
	return w.died()
}

// setup moves an interpreter into a directory.
func (w *worker) setup(ctx context.Context, dir string) error {
	b, _ := json.Marshal(map[string]string{"type": "setup", "cwd": dir})
	if err := w.write(b); err != nil {
		return w.died()
	}
	if err := w.ready(ctx); err != nil {
		return &process.DirError{Dir: dir, Reason: err.Error(), Err: err}
	}
	return nil
}

// runRequest is the frame that runs code.
type runRequest struct {
	Type     string            `json:"type"`
	ID       uint64            `json:"id"`
	Language string            `json:"language"`
	Code     string            `json:"code"`
	Envs     map[string]string `json:"envs,omitempty"`
}

// run runs code until its end. When ctx ends the code is interrupted, and the
// interpreter killed if it goes on. There is one run at a time.
func (w *worker) run(ctx context.Context, language, code string, envs map[string]string, to sink) {
	w.current.Store(&to)
	defer w.current.Store(nil)
	defer context.AfterFunc(ctx, to.hurry)()
	w.last++
	b, _ := json.Marshal(runRequest{Type: "run", ID: w.last, Language: language, Code: code, Envs: envs})
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = w.control.SetWriteDeadline(time.Now())
		close(cut)
	})
	err := w.write(b)
	if !stop() {
		// It may have come after the write: by then the code may have run for long.
		<-cut
		_ = w.control.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
	case ctx.Err() != nil: // half a request may be in it
		w.kill("it does not read what it is to run")
	default:
		w.kill("its code has closed the connection to the agent")
	}
	interrupt, again := ctx.Done(), time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	tries := 0
	for {
		select {
		case f := <-w.replies:
			if f.Type != "done" || f.ID != w.last {
				continue // of a run before, or forged
			}
			w.settle()
			if f.Error != nil {
				to.message(f.Error.message())
			}
			return
		case <-interrupt:
			interrupt = nil
			_ = w.process.Signal(unix.SIGINT)
			again.Reset(interruptGrace / 2)
		case <-again.C:
			// Code may have caught the first one by chance.
			if tries++; tries == 1 {
				_ = w.process.Signal(unix.SIGINT)
				again.Reset(interruptGrace / 2)
				continue
			}
			w.kill("its code did not heed the interrupt")
		case <-w.exited:
			to.message((&exception{Name: wire.InterpreterExited, Value: w.died().Error() + "; its state is lost, the next run begins anew"}).message())
			return
		}
	}
}

// close lets it end of its own accord, and kills it if it does not.
func (w *worker) close() {
	if conn, err := w.control.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
	select {
	case <-w.exited:
	case <-time.After(time.Second):
		w.kill("its context was deleted")
		<-w.exited
	}
}
