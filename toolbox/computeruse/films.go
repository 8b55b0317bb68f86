package computeruse

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// filmsAtOnce is how many recordings may be made at the same time, filmTime
	// how long one of them may last.
	filmsAtOnce = 4
	filmTime    = 4 * time.Hour
	// filmStart is how long ffmpeg may take to its first picture, filmStop to
	// write the end of its file.
	filmStart = 15 * time.Second
	filmStop  = 10 * time.Second
	// filmsListed bounds a list, and how many are remembered.
	filmsListed = 10000
	// stampLayout is that of the time in a file's name.
	stampLayout = "20060102_150405"
)

// validLabel says whether a label may be part of a file's name.
func validLabel(label string) bool {
	for _, c := range []byte(label) {
		if !alphanumeric(c) && !strings.ContainsRune(" ._-", rune(c)) {
			return false
		}
	}
	return label != "" && len(label) <= 100 && label[0] != '.'
}

func alphanumeric(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' }

// parseName takes the name of a recording's file apart: ID_LABEL_TIME.mp4.
func parseName(name string) (id string, start time.Time, ok bool) {
	rest, ok := strings.CutSuffix(name, ".mp4")
	if !ok || len(rest) > 200 || len(rest) < len(stampLayout) {
		return "", start, false
	}
	stamp := rest[len(rest)-len(stampLayout):]
	id, label, ok := strings.Cut(rest[:len(rest)-len(stamp)], "_")
	label, under := strings.CutSuffix(label, "_")
	if !ok || !under || !validID(id) || !validLabel(label) {
		return "", start, false
	}
	start, err := time.Parse(stampLayout, stamp)
	return id, start, err == nil
}

func validID(id string) bool {
	for _, c := range []byte(id) {
		if !alphanumeric(c) && c != '-' {
			return false
		}
	}
	return id != "" && len(id) <= 64
}

// films are the recordings. What is not under way is known by its file alone, so
// that it outlives the agent.
type films struct {
	s *Service

	mu     sync.Mutex
	active map[string]*film
	// exact are the times of those made by this agent; a file's name has full
	// seconds only.
	exact map[string][2]time.Time
}

// film is a recording under way.
type film struct {
	id, path string
	start    time.Time
	proc     *process.Process
	stderr   ring
	gone     chan struct{}
}

func newFilms(s *Service) *films {
	return &films{s: s, active: make(map[string]*film), exact: make(map[string][2]time.Time)}
}

func (f *films) register(mux *http.ServeMux) {
	mux.HandleFunc("POST /computeruse/recordings/start", f.serveStart)
	mux.HandleFunc("POST /computeruse/recordings/stop", f.serveStop)
	mux.HandleFunc("GET /computeruse/recordings", f.serveList)
	mux.HandleFunc("GET /computeruse/recordings/{id}", f.serveGet)
	mux.HandleFunc("DELETE /computeruse/recordings/{id}", f.serveDelete)
	mux.HandleFunc("GET /computeruse/recordings/{id}/download", f.serveDownload)
}

// dir is where recordings are.
func (f *films) dir() string {
	dir := f.s.env.Get("DAYTONA_RECORDINGS_DIR")
	if dir == "" {
		dir = ".daytona/recordings"
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(cmp.Or(f.s.spawner.Account().Home, f.s.spawner.WorkDir()), dir)
	}
	return filepath.Clean(dir)
}

func (f *films) serveStart(w http.ResponseWriter, r *http.Request) {
	var req wire.RecordingStartRequest
	err := decode(r, &req)
	var made wire.Recording
	if err == nil {
		made, err = f.start(r.Context(), req.Label)
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	wire.WriteJSON(w, http.StatusCreated, made)
}

func (f *films) start(ctx context.Context, label string) (none wire.Recording, err error) {
	if label != "" && !validLabel(label) {
		return none, &refusal{http.StatusBadRequest, "", "bad request: label: want 1 to 100 letters, digits, spaces, dots, underscores and hyphens, and no dot at the beginning", "invalid_label"}
	}
	if f.s.lookPath("ffmpeg") != "" {
		return none, &refusal{http.StatusServiceUnavailable, wire.CodeFFmpegNotFound, "the sandbox has no ffmpeg, which makes recordings: install the package ffmpeg", "ffmpeg_not_found"}
	}
	run, err := f.s.running()
	if err != nil {
		return none, err
	}
	dir := f.dir()
	if err := f.s.spawner.Account().Do(func() error { return os.MkdirAll(dir, 0o755) }); err != nil {
		return none, fmt.Errorf("make the directory for recordings: %w", err)
	}
	m := &film{id: strings.ToLower(rand.Text()[:16]), start: time.Now().UTC(), gone: make(chan struct{})}
	m.path = filepath.Join(dir, m.id+"_"+cmp.Or(label, "session")+"_"+m.start.Format(stampLayout)+".mp4")
	errs, err := newSink(&m.stderr)
	if err != nil {
		return none, err
	}
	// ffmpeg tells of its progress: of the first picture, too.
	r, w, err := os.Pipe()
	if err != nil {
		errs.close()
		return none, fmt.Errorf("make a pipe: %w", err)
	}
	begun := make(chan struct{})
	go func() {
		defer r.Close()
		buf := make([]byte, 512)
		n, err := r.Read(buf)
		if n > 0 {
			close(begun)
		}
		for err == nil {
			_, err = r.Read(buf)
		}
	}()
	f.mu.Lock()
	if len(f.active) >= filmsAtOnce {
		err = refuse(http.StatusTooManyRequests, "", "%d recordings are being made: stop one first", len(f.active))
	} else if f.s.stale(run) {
		err = refuse(http.StatusServiceUnavailable, wire.CodeDesktopStopped, "the desktop has just been stopped")
	} else {
		// In fragments, the file can be watched whatever ends it.
		m.proc, err = f.s.spawner.Start(&process.Spec{
			Args: []string{"ffmpeg", "-hide_banner", "-loglevel", "warning", "-nostdin", "-progress", "pipe:1", "-stats_period", "1",
				"-f", "x11grab", "-framerate", "30", "-draw_mouse", "1", "-i", run.display,
				"-t", fmt.Sprint(int(filmTime.Seconds())), "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-c:v", "libx264", "-preset", "ultrafast",
				"-threads", "2", "-pix_fmt", "yuv420p", "-g", "60", "-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-f", "mp4", "file:" + m.path},
			Env: run.env, Stdout: int(w.Fd()), Stderr: int(errs.w.Fd()),
		})
		if err == nil {
			f.active[m.id] = m
		}
	}
	f.mu.Unlock()
	w.Close()
	if err != nil {
		errs.close()
		return none, err
	}
	go func() {
		m.proc.Wait()
		m.proc.KillTree()
		errs.close()
		f.mu.Lock()
		delete(f.active, m.id)
		if len(f.exact) < filmsListed {
			f.exact[m.id] = [2]time.Time{m.start, time.Now().UTC()}
		}
		f.mu.Unlock()
		close(m.gone)
	}()
	t := time.NewTimer(filmStart)
	defer t.Stop()
	select {
	case <-begun:
		return m.recording(), nil
	case <-m.gone:
		return none, fmt.Errorf("ffmpeg ended at once: %s", lastLine(m.stderr.text()))
	case <-t.C:
		err = errors.New("ffmpeg makes no picture")
	case <-ctx.Done():
		err = ctx.Err()
	}
	m.end()
	_ = f.s.spawner.Account().Do(func() error { return os.Remove(m.path) })
	return none, err
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return s[max(0, len(s)-500):]
}

func (m *film) recording() wire.Recording {
	return wire.Recording{ID: m.id, FileName: filepath.Base(m.path), FilePath: m.path, StartTime: m.start.Format(time.RFC3339Nano), Status: "recording"}
}

// end makes ffmpeg write the end of its file, and waits for that.
func (m *film) end() {
	_ = m.proc.Signal(unix.SIGINT)
	t := time.AfterFunc(filmStop, m.proc.KillTree)
	defer t.Stop()
	<-m.gone
}

// finish ends all recordings.
func (f *films) finish() {
	f.mu.Lock()
	var all []*film
	for _, m := range f.active {
		all = append(all, m)
	}
	f.mu.Unlock()
	var wg sync.WaitGroup
	for _, m := range all {
		wg.Go(m.end)
	}
	wg.Wait()
}

func (f *films) serveStop(w http.ResponseWriter, r *http.Request) {
	var req wire.RecordingStopRequest
	err := decode(r, &req)
	if err == nil && req.ID == "" {
		err = refuse(http.StatusBadRequest, "", "bad request: id is required")
	}
	var done wire.Recording
	if err == nil {
		f.mu.Lock()
		m := f.active[req.ID]
		f.mu.Unlock()
		if m != nil {
			m.end()
		}
		if done, err = f.find(req.ID); err == nil && m == nil {
			err = refuse(http.StatusBadRequest, "", "bad request: recording %s is not being made: it is %s", done.ID, done.Status)
		}
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, done)
}

// list reads the directory.
func (f *films) list(want func(id string) bool) ([]wire.Recording, error) {
	dir := f.dir()
	type file struct {
		id, name string
		start    time.Time
		info     fs.FileInfo
	}
	var files []file
	err := f.s.spawner.Account().Do(func() error {
		d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer d.Close()
		names, err := d.Readdirnames(-1)
		for _, name := range names {
			id, start, ok := parseName(name)
			if !ok || !want(id) || len(files) == filmsListed {
				continue
			}
			if info, err := os.Lstat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() {
				files = append(files, file{id, name, start, info})
			}
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the directory of recordings: %w", err)
	}
	list := []wire.Recording{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range files {
		start, size := x.start, x.info.Size()
		made := wire.Recording{ID: x.id, FileName: x.name, FilePath: filepath.Join(dir, x.name), Status: "completed", SizeBytes: &size}
		if now := f.active[made.ID]; now != nil {
			made.Status, made.StartTime = "recording", now.start.Format(time.RFC3339Nano)
			list = append(list, made)
			continue
		}
		end := x.info.ModTime().UTC()
		if exact, ok := f.exact[made.ID]; ok {
			start, end = exact[0], exact[1]
		}
		seconds := max(0, end.Sub(start).Seconds())
		made.StartTime, made.EndTime, made.DurationSeconds = start.Format(time.RFC3339Nano), end.Format(time.RFC3339Nano), &seconds
		if size == 0 {
			made.Status = "failed"
		}
		list = append(list, made)
	}
	slices.SortFunc(list, func(a, b wire.Recording) int {
		return cmp.Or(cmp.Compare(a.StartTime, b.StartTime), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

func (f *films) find(id string) (wire.Recording, error) {
	if validID(id) {
		list, err := f.list(func(other string) bool { return other == id })
		if err != nil {
			return wire.Recording{}, err
		}
		if len(list) > 0 {
			return list[0], nil
		}
	}
	return wire.Recording{}, refuse(http.StatusNotFound, "", "not found: there is no recording %.100q", id)
}

func (f *films) serveList(w http.ResponseWriter, r *http.Request) {
	list, err := f.list(func(string) bool { return true })
	if err != nil {
		fail(w, r, err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, wire.RecordingList{Recordings: list})
}

func (f *films) serveGet(w http.ResponseWriter, r *http.Request) {
	found, err := f.find(r.PathValue("id"))
	if err != nil {
		fail(w, r, err)
		return
	}
	wire.WriteJSON(w, http.StatusOK, found)
}

func (f *films) serveDelete(w http.ResponseWriter, r *http.Request) {
	found, err := f.find(r.PathValue("id"))
	if err == nil && found.Status == "recording" {
		err = refuse(http.StatusConflict, wire.CodeRecordingActive, "conflict: recording %s is still being made: stop it first", found.ID)
	}
	if err == nil {
		err = f.s.spawner.Account().Do(func() error { return os.Remove(found.FilePath) })
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // somebody else was faster
		}
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	f.mu.Lock()
	delete(f.exact, found.ID)
	f.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (f *films) serveDownload(w http.ResponseWriter, r *http.Request) {
	found, err := f.find(r.PathValue("id"))
	var file *os.File
	var info fs.FileInfo
	if err == nil {
		err = f.s.spawner.Account().Do(func() (err error) {
			file, err = os.OpenFile(found.FilePath, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			return err
		})
	}
	if err == nil {
		defer file.Close()
		if info, err = file.Stat(); err == nil && !info.Mode().IsRegular() {
			err = refuse(http.StatusNotFound, "", "not found: recording %s is no file", found.ID)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = refuse(http.StatusNotFound, "", "not found: recording %s has just been deleted", found.ID)
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "video/mp4")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": found.FileName}))
	http.ServeContent(w, r, "", info.ModTime(), file)
}
