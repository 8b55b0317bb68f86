//go:build linux

package docker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/docker"
)

func openDocker(t *testing.T) *daytona.Client {
	t.Helper()
	if why := missing(); why != "" {
		t.Skip(why)
	}
	c, err := docker.Open(t.Context(), &docker.Options{Dir: t.TempDir(), Image: sandboxImage()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// bases lets Dockerfiles name the image of the tests, which may be a path.
func bases() map[string]string { return map[string]string{"base": sandboxImage()} }

// TestBuildFromHostPath: no Dockerfile reads this machine's files.
func TestBuildFromHostPath(t *testing.T) {
	c := openDocker(t)
	for _, text := range []string{
		"FROM oci:/tmp/img/slim:slim\nLABEL a=b\n",
		"ARG X=docker-archive:/tmp/x.tar\nFROM $X\nLABEL a=b\n",
		"ARG X\nFROM ${X:-tar:/tmp/x.tar}\nLABEL a=b\n",
		"FROM scratch\nCOPY --from=oci:/tmp/img/slim:slim /etc/passwd /p\n",
		"FROM scratch\nCOPY --from=dir:/etc /passwd /p\n",
	} {
		_, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{})
		if !errors.Is(err, daytona.ErrUnsupported) || !strings.Contains(err.Error(), "paths of this machine") {
			t.Errorf("%q: %v", text, err)
		}
	}
	// The value of an ARG is the Dockerfile's as well.
	if _, err := c.Build(t.Context(), daytona.NewImage("ARG X\nFROM $X\nLABEL a=b\n"), daytona.BuildOptions{Args: map[string]string{"X": "oci:/tmp/img/slim:slim"}}); !errors.Is(err, daytona.ErrUnsupported) {
		t.Error(err)
	}
}

// TestBuild: instructions that the engine does and those that sandboxes do make
// one image, which is found the second time.
func TestBuild(t *testing.T) {
	c := openDocker(t)
	files := fstest.MapFS{
		"app/main.txt":  {Data: []byte("hello"), Mode: 0o644},
		"app/skip.txt":  {Data: []byte("secret"), Mode: 0o644},
		".dockerignore": {Data: []byte("app/skip.txt\n")},
	}
	img := daytona.NewImage(`ARG BASE
FROM $BASE AS first
ARG WORD=one
USER root
ENV E=value
RUN echo $WORD $E > /first && \
    id -u >> /first
FROM $BASE
USER root
WORKDIR /srv
COPY app /srv/app
COPY --from=first --chown=1000:1000 /first /srv/first
RUN ["sh", "-c", "ls -A app > list; pwd >> list"]
RUN grep -q NoNewPrivs:.*1 /proc/self/status
USER daytona
ENTRYPOINT ["sleep", "1000"]
`, daytona.BuildContext{Files: files, Path: "."})
	var log []daytona.BuildLog
	opts := daytona.BuildOptions{Args: map[string]string{"BASE": "base", "WORD": t.TempDir()}, Bases: bases(), OnLog: func(l daytona.BuildLog) { log = append(log, l) }}
	built, err := c.Build(t.Context(), img, opts)
	if err != nil {
		t.Fatalf("%v\n%+v", err, log)
	}
	if built.Cached {
		t.Error("it is said to be found the first time")
	}
	again, err := c.Build(t.Context(), img, opts)
	if err != nil || !again.Cached || again.Digest != built.Digest {
		t.Errorf("again: %+v, %v; was %+v", again, err, built)
	}
	sb, err := c.Create(t.Context(), daytona.Spec{Image: built.Ref})
	if err != nil {
		t.Fatal(err)
	}
	r, err := sb.Process().Exec(t.Context(), "cat /srv/first /srv/list; stat -c %u /srv/first; pwd", nil)
	if want := opts.Args["WORD"] + " value\n0\nmain.txt\n/srv\n1000\n/srv\n"; err != nil || r.Output != want {
		t.Errorf("%q, %v, want %q", r.Output, err, want)
	}
	if e := sb.Info().Entrypoint; strings.Join(e, " ") != "sleep 1000" || sb.Info().User != "daytona" {
		t.Errorf("entrypoint %q, user %q", e, sb.Info().User)
	}
}

// TestBuildRefused: what cannot be done is refused before anything is.
func TestBuildRefused(t *testing.T) {
	c := openDocker(t)
	for text, field := range map[string]string{
		"FROM scratch\nRUN --mount=type=cache,target=/x true\n": "Dockerfile line 2",
		"FROM scratch\n\nCOPY --chmod=755 a b\n":                "Dockerfile line 3",
		"FROM scratch\nADD https://example.com/ /x\n":           "Dockerfile line 2",
		"FROM scratch\nADD https:\\/\\/example.com /x\n":        "Dockerfile line 2",
		"FROM scratch\nARG U=http://x/\nADD $U /x\n":            "Dockerfile line 3",
		"FROM scratch\nONBUILD RUN true\n":                      "Dockerfile line 2",
		"FROM scratch\nRUN <<EOF\ntrue\nEOF\n":                  "Dockerfile line 2",
	} {
		_, err := c.Build(t.Context(), daytona.NewImage(text), daytona.BuildOptions{})
		e, ok := errors.AsType[*daytona.Error](err)
		if !ok || e.Kind != daytona.KindUnsupported || e.Field != field {
			t.Errorf("%q: %v, want %s refused", text, err, field)
		}
	}
}

// TestBuildFails: a step that fails or takes too long is named, with what it said.
func TestBuildFails(t *testing.T) {
	c := openDocker(t)
	build := func(run string, opts daytona.BuildOptions) error {
		opts.Bases = bases()
		_, err := c.Build(t.Context(), daytona.NewImage("FROM base\n\nRUN "+run+"\n"), opts)
		return err
	}
	err := build("echo said; echo wrong >&2; exit 7", daytona.BuildOptions{})
	e, ok := errors.AsType[*daytona.BuildError](err)
	if !ok || e.Line != 3 || e.ExitCode != 7 || e.Step != 2 || !strings.Contains(string(e.Log), "said") || !strings.Contains(string(e.Log), "wrong") {
		t.Errorf("%+v", err)
	}
	if err := build("sleep 60", daytona.BuildOptions{StepTimeout: time.Second}); !errors.Is(err, daytona.ErrTimeout) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := c.Build(ctx, daytona.NewImage("FROM base\nRUN sleep 61\n"), daytona.BuildOptions{Bases: bases()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	for sb, err := range c.List(t.Context(), nil) {
		t.Errorf("%v is left (%v)", sb, err)
	}
}
