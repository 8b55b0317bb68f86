package filesystem

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Limits of searches. An answer that was cut has the header TruncatedHeader.
const (
	searchLimit  = 32 << 20 // bytes of paths, or of lines and paths
	lineLimit    = 4 << 10  // bytes of a line that are shown
	patternLimit = 4 << 10  // bytes of a pattern
)

// TruncatedHeader (Extension) is "true" in the answer of a search that found
// more than it shows.
const TruncatedHeader = "X-Daytona-Truncated"

// errTruncated ends a walk that has found enough.
var errTruncated = errors.New("enough found")

func (s *Service) search(w http.ResponseWriter, r *http.Request) error {
	shown, p, pattern, err := s.searchQuery(r)
	if err != nil {
		return err
	}
	// A pattern is one of base names, so a leading "**/" says nothing new.
	for strings.HasPrefix(pattern, "**/") {
		pattern = pattern[len("**/"):]
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return invalid("pattern %q: %v", clip(pattern), err)
	}
	answer := wire.SearchFilesResponse{Files: []string{}}
	size := 0
	err = s.walk(r.Context(), p, shown, func(_ int, name, shown string, _ *unix.Stat_t) error {
		if ok, _ := path.Match(pattern, name); !ok {
			return nil
		}
		if size += len(shown) + 16; size > searchLimit {
			return errTruncated
		}
		answer.Files = append(answer.Files, shown)
		return nil
	})
	if errors.Is(err, errTruncated) {
		w.Header().Set(TruncatedHeader, "true")
	} else if err != nil {
		return err
	}
	wire.WriteJSON(w, http.StatusOK, answer)
	return nil
}

func (s *Service) find(w http.ResponseWriter, r *http.Request) error {
	shown, p, pattern, err := s.searchQuery(r)
	if err != nil {
		return err
	}
	buf := s.buffers.Get().(*[bufferSize]byte)
	defer s.buffers.Put(buf)
	matches := []wire.Match{}
	size := 0
	err = s.walk(r.Context(), p, shown, func(dir int, name, shown string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
		fd, err := s.open.at(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil // not readable: skipped, as directories are
		}
		defer unix.Close(fd)
		if unix.Fstat(fd, st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
		read := func(b []byte) (int, error) {
			if err := r.Context().Err(); err != nil {
				return 0, err
			}
			n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, b) })
			if err == nil && n == 0 {
				err = io.EOF
			}
			return n, err
		}
		err = grep(readerFunc(read), []byte(pattern), buf[:], func(line int, text []byte) error {
			if size += len(text) + len(shown) + 64; size > searchLimit {
				return errTruncated
			}
			matches = append(matches, wire.Match{File: shown, Line: line, Content: strings.ToValidUTF8(string(text), "\uFFFD")})
			return nil
		})
		if errors.Is(err, errTruncated) || r.Context().Err() != nil {
			return err
		}
		return nil
	})
	if errors.Is(err, errTruncated) {
		w.Header().Set(TruncatedHeader, "true")
	} else if err != nil {
		return err
	}
	wire.WriteJSON(w, http.StatusOK, matches)
	return nil
}

// searchQuery returns the path as given, the path resolved, and the pattern.
func (s *Service) searchQuery(r *http.Request) (shown, p, pattern string, err error) {
	if p, err = s.queryPath(r, "path"); err != nil {
		return "", "", "", err
	}
	shown = path.Clean(r.URL.Query().Get("path"))
	switch pattern = r.URL.Query().Get("pattern"); {
	case pattern == "":
		err = invalid(`query parameter "pattern" is missing or empty`)
	case len(pattern) > patternLimit:
		err = invalid("pattern %q: has %d bytes, at most %d are possible", clip(pattern), len(pattern), patternLimit)
	}
	return shown, p, pattern, err
}

// walk calls visit for everything below a directory, or for the file itself,
// sorted by name. dir and name are where the file is for openat(2), shown is
// its path for people. Links are not followed, unreadable directories skipped,
// and so are the kernel's file systems unless the walk starts there.
func (s *Service) walk(ctx context.Context, p, shown string, visit func(dir int, name, shown string, st *unix.Stat_t) error) error {
	return s.account.Do(func() error {
		fd, err := s.open.at(unix.AT_FDCWD, p, unix.O_PATH, 0)
		if err != nil {
			return pathError("open", p, err)
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return pathError("stat", p, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			at, err := s.follow(p)
			if err != nil {
				return err
			}
			defer at.close()
			return visit(at.dir, at.name, shown, &st)
		}
		dir, err := s.openDirectory(unix.AT_FDCWD, p, p, 0)
		if err != nil {
			return err
		}
		dir.path = shown
		w := &walker{s, ctx, visit, pseudo(dir.fd)}
		return w.directory(dir, st.Dev, 0)
	})
}

type walker struct {
	service *Service
	ctx     context.Context
	visit   func(dir int, name, shown string, st *unix.Stat_t) error
	pseudo  bool
}

// walkDepth bounds the directories that are open at once.
const walkDepth = depthLimit

func (w *walker) directory(d *directory, dev uint64, depth int) error {
	defer d.close()
	for _, name := range d.names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		var st unix.Stat_t
		if unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		shown := path.Join(d.path, name)
		isDir, subDev := st.Mode&unix.S_IFMT == unix.S_IFDIR, st.Dev
		if err := w.visit(d.fd, name, shown, &st); err != nil {
			return err
		}
		if !isDir || depth == walkDepth {
			continue
		}
		sub, err := w.service.openDirectory(d.fd, name, shown, unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		if subDev != dev && !w.pseudo && pseudo(sub.fd) {
			sub.close()
			continue
		}
		if err := w.directory(sub, subDev, depth+1); err != nil {
			return err
		}
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// grep calls found for each line that contains text, with what fits lineLimit
// of it. It skips content with a NUL byte in its first 512. Memory use is that
// of buf, which must be much larger than text.
func grep(r io.Reader, text, buf []byte, found func(line int, content []byte) error) error {
	const sniff = 512
	n, err := io.ReadAtLeast(r, buf, sniff)
	if bytes.IndexByte(buf[:min(n, sniff)], 0) >= 0 {
		return nil
	}
	ended := err != nil
	if ended && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	line, reported := 1, false
	for {
		// All complete lines, and the unfinished one if there is no more.
		rest := buf[:n]
		for len(rest) > 0 {
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				break
			}
			if !reported && bytes.Contains(rest[:end], text) {
				if err := found(line, shorten(rest[:end])); err != nil {
					return err
				}
			}
			rest, line, reported = rest[end+1:], line+1, false
		}
		if ended {
			if len(rest) > 0 && !reported && bytes.Contains(rest, text) {
				return found(line, shorten(rest))
			}
			return nil
		}
		if len(rest) > len(buf)/2 {
			// A line longer than the buffer: of it, keep as much as a match
			// may need that begins here and ends in what comes.
			if !reported && bytes.Contains(rest, text) {
				if err := found(line, shorten(rest)); err != nil {
					return err
				}
				reported = true
			}
			rest = rest[len(rest)-len(text)+1:]
		}
		n = copy(buf, rest)
		m, err := r.Read(buf[n:])
		n += m
		if err == io.EOF {
			ended = true
		} else if err != nil {
			return err
		}
	}
}

// shorten cuts a line to lineLimit, between characters.
func shorten(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) <= lineLimit {
		return line
	}
	end := lineLimit
	for end > lineLimit-utf8.UTFMax && !utf8.RuneStart(line[end]) {
		end--
	}
	return line[:end]
}

func (s *Service) replace(w http.ResponseWriter, r *http.Request) error {
	var request wire.ReplaceRequest
	if err := decode(w, r, &request); err != nil {
		return err
	}
	if request.Pattern == "" {
		return invalid("pattern is empty: give the text to replace")
	}
	results := make([]wire.ReplaceResult, 0, len(request.Files))
	for _, given := range request.Files {
		p, err := s.resolve(given)
		if err == nil {
			err = s.replaceIn(r.Context(), p, []byte(request.Pattern), []byte(request.NewValue))
		}
		if r.Context().Err() != nil {
			return r.Context().Err()
		}
		result := wire.ReplaceResult{File: given, Success: err == nil}
		if err != nil {
			_, _, result.Error = describe(err)
		}
		results = append(results, result)
	}
	wire.WriteJSON(w, http.StatusOK, results)
	return nil
}

// replaceIn replaces text in one file; one without it is not touched.
func (s *Service) replaceIn(ctx context.Context, p string, old, new []byte) error {
	c, err := s.openContent(p)
	if err != nil {
		return err
	}
	defer c.Close()
	if c.size < 0 {
		return invalidPath("%s: is a file of the kernel's without a size", p)
	}
	buf := make([]byte, max(64<<10, 4*len(old)))
	if found, err := contains(ctx, c, old, buf); err != nil || !found {
		return cleaned("read", p, err)
	}
	if _, err := c.Seek(0, io.SeekStart); err != nil {
		return cleaned("read", p, err)
	}
	t, err := s.begin(p, 0, false, false)
	if err != nil {
		return err
	}
	if t.inPlace {
		// What is read would be overwritten meanwhile.
		return t.replaceInPlace(c, old, new)
	}
	if err := replaceAll(ctx, t.file, c, old, new, buf); err != nil {
		t.abort()
		return cleaned("write", p, err)
	}
	return t.commit(false)
}

// contains tells whether r has text.
func contains(ctx context.Context, r io.Reader, text, buf []byte) (bool, error) {
	n := 0
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		m, err := r.Read(buf[n:])
		n += m
		if bytes.Contains(buf[:n], text) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if keep := len(text) - 1; n > keep {
			n = copy(buf, buf[n-keep:n])
		}
	}
}

// replaceAll copies r to w with old replaced by new. buf must be larger than
// old.
func replaceAll(ctx context.Context, w io.Writer, r io.Reader, old, new, buf []byte) error {
	n := 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := r.Read(buf[n:])
		n += m
		rest := buf[:n]
		for {
			i := bytes.Index(rest, old)
			if i < 0 {
				break
			}
			if _, err := w.Write(rest[:i]); err != nil {
				return err
			}
			if _, err := w.Write(new); err != nil {
				return err
			}
			rest = rest[i+len(old):]
		}
		keep := min(len(rest), len(old)-1)
		if err != nil {
			keep = 0
		}
		if _, err := w.Write(rest[:len(rest)-keep]); err != nil {
			return err
		}
		n = copy(buf, rest[len(rest)-keep:])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// inPlaceLimit bounds the files that are changed in memory, in bytes.
const inPlaceLimit = 64 << 20

func (t *staged) replaceInPlace(c *content, old, new []byte) error {
	data, err := io.ReadAll(io.LimitReader(c, inPlaceLimit+1))
	if err == nil && len(data) > inPlaceLimit {
		err = invalidPath("%s: cannot be replaced by a new file, and is too large to be changed in place (more than %d bytes)", t.path, inPlaceLimit)
	}
	if err == nil {
		_, err = t.copyFrom(bytes.NewReader(bytes.ReplaceAll(data, old, new)))
	}
	if err != nil {
		t.abort()
		return cleaned("write", t.path, err)
	}
	return t.commit(false)
}
