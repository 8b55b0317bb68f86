package remote_test

import (
	"context"
	"os"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/backendtest"
	"github.com/daytona-go/daytona/backend/remote"
	"github.com/daytona-go/daytona/toolbox/reexec"
)

// A server to run the suites against; without it, they have one of their own
// once inProcess can start it.
const (
	urlVariable   = "DAYTONA_TEST_API_URL"
	keyVariable   = "DAYTONA_TEST_API_KEY"
	imageVariable = "DAYTONA_TEST_API_IMAGE" // what sandboxes are made from; a registry's
)

// inProcess starts a server in this process and says where it is. It skips the
// test where there can be none.
func inProcess(t testing.TB) (url, key, image string) {
	t.Skip("there is no server to start in this process yet; set " + urlVariable + " and " + keyVariable)
	return "", "", ""
}

func serverUnderTest(t testing.TB) (url, key, image string) {
	if url := os.Getenv(urlVariable); url != "" {
		return url, os.Getenv(keyVariable), os.Getenv(imageVariable)
	}
	return inProcess(t)
}

func harness(t testing.TB) *backendtest.Harness {
	url, key, image := serverUnderTest(t)
	return &backendtest.Harness{
		// All sandboxes of an organization are one backend's: the state says nothing.
		Open: func(context.Context, string) (daytona.Backend, error) {
			return remote.New(&remote.Options{URL: url, Key: key})
		},
		Spec: daytona.Spec{Image: image},
		Slow: 5,
		Lacks: map[backendtest.Capability]string{
			backendtest.TarImages:  "the server does not see files of this machine",
			backendtest.Registries: "the server has the credentials of registries",
			backendtest.Processes:  "the wire has no limit of processes",
			backendtest.Timers:     "the wire counts in minutes",
		},
		Skip: map[string]string{
			"CreateDefaults":    "the wire says neither the working directory nor when a sandbox was started",
			"StopStart":         "the wire does not say when a sandbox was stopped",
			"WorkDir":           "the wire has it in the Dockerfile of an image only",
			"FileWatch":         "the wire does not say the working directory, which the names are relative to",
			"Dial":              "the wire does not say the working directory",
			"SSH":               "the wire does not say the working directory",
			"Resources":         "the wire counts whole cores and whole GiB",
			"Metrics":           "the wire counts whole GiB",
			"DiskFull":          "the wire counts whole GiB",
			"RunCodeTypeScript": "the default image has no TypeScript",
			"Fork":              "the wire forks one at a time, and servers keep a parent while it has forks",
			"Entrypoint":        "the wire has it in the Dockerfile of an image only",
			"LanguageServer":    "the server's machine has not the program of this package's",
			"Snapshot":          "an organization sees the server's own snapshots, too",
			"Resize":            "the wire counts whole GiB",
			"Volumes":           "the wire has no read-only volumes",
			"User":              "what is wrong with a user a server says in words only",
		},
	}
}

// TestMain is also the agent's helpers: the agents of these tests are in this process.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	os.Exit(backendtest.Main(m, &backendtest.Harness{}))
}

func TestConformance(t *testing.T) { backendtest.RunConformance(t, harness(t)) }
