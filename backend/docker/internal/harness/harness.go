//go:build linux

// Package harness describes the docker backend to the suites of package
// backendtest, for the test programs that run them: that of the backend itself,
// and that of the backend as a plugin.
package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/docker"
)

// ImagesVariable lists images made by image/sandbox, with commas between.
const ImagesVariable = "DAYTONA_TEST_IMAGES"

// Missing says what the suites lack on this machine, given the value of
// ImagesVariable; "" if nothing.
func Missing(images string) string {
	switch {
	case os.Geteuid() != 0:
		return "the docker backend needs root"
	case exec.Command("docker", "info").Run() != nil:
		return "no Docker engine answers (docker info)"
	case Image(images) == "":
		return "no image: run `make image` and set " + ImagesVariable + " to what it prints"
	}
	return ""
}

// Image is the first of the images, which sandboxes are made from.
func Image(images string) string {
	first, _, _ := strings.Cut(images, ",")
	return first
}

// New describes the backend with the first of images, and agents reached in one
// way; see docker.Options.
func New(images, transport string) *backendtest.Harness {
	image := Image(images)
	return &backendtest.Harness{
		Open: func(ctx context.Context, state string) (daytona.Backend, error) {
			return docker.New(ctx, &docker.Options{Dir: state, Image: image, Transport: transport,
				Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		},
		Spec:         daytona.Spec{Image: image},
		DesktopImage: backendtest.ImageNamed(images, "desktop"),
		Leftovers:    Leftovers,
		ForgetImage: func(ctx context.Context, ref string) error {
			return exec.CommandContext(ctx, "docker", "rmi", "-f", ref).Run()
		},
		DockerImage: func(ctx context.Context, id string) (string, error) {
			out, err := exec.CommandContext(ctx, "docker", "ps", "--filter", "label=io.github.daytona-go.sandbox="+id, "--format", "{{.Image}}").Output()
			return strings.TrimSpace(string(out)), err
		},
		Slow: 3,
		Lacks: map[backendtest.Capability]string{
			backendtest.Disk:       "overlay2 on ext4 gives containers no limit",
			backendtest.UserLimits: "without user namespaces the users of all containers are the same to the kernel",
			"NetworkPolicer":       "the agent puts the policy in force when the container starts, and gives up the right to change it",
		},
	}
}

// tag is what the names of a state directory's images begin with: their labels are
// those of what they were made from.
func tag(state string) string {
	machine, _ := os.ReadFile("/etc/machine-id")
	sum := sha256.Sum256([]byte(state + "\x00" + strings.TrimSpace(string(machine))))
	return hex.EncodeToString(sum[:4])
}

// Leftovers lists what the engine and the disk have because of a state
// directory.
func Leftovers(ctx context.Context, state string) ([]string, error) {
	var found []string
	for _, dir := range []string{"sandboxes", "names", "snapshots", "snapshot-names", "volumes", "archives/docker"} {
		entries, err := os.ReadDir(filepath.Join(state, dir))
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for _, e := range entries {
			found = append(found, filepath.Join(state, dir, e.Name()))
		}
	}
	out, err := exec.CommandContext(ctx, "docker", "ps", "-a", "--filter", "label=io.github.daytona-go.directory="+state, "--format", "{{.Names}} {{.Status}}").Output()
	if err != nil {
		return nil, fmt.Errorf("docker ps: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		found = append(found, "container "+strings.TrimSpace(line))
	}
	if out, err = exec.CommandContext(ctx, "docker", "images", "--filter", "reference=daytona.local/files", "--format", "{{.Repository}}:{{.Tag}}").Output(); err != nil {
		return nil, fmt.Errorf("docker images: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, ":"+tag(state)+"-") {
			found = append(found, "image "+strings.TrimSpace(line))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+state+"/") {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	if out, err = exec.CommandContext(ctx, "docker", "volume", "ls", "-q", "--filter", "label=io.github.daytona-go.directory="+state).Output(); err != nil {
		return nil, fmt.Errorf("docker volume ls: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		found = append(found, "volume "+strings.TrimSpace(line))
	}
	return found, nil
}
