package computeruse_test

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestSDKPython calls every operation through the Python SDK's generated client,
// which checks every answer against its types.
func TestSDKPython(t *testing.T) {
	sdk := os.Getenv("DAYTONA_TEST_SDK_PY")
	if sdk == "" {
		t.Skip("DAYTONA_TEST_SDK_PY does not say where the SDK is")
	}
	want(t, "ffmpeg")
	a := startDesktop(t, nil)
	a.form()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, sdk, "testdata/sdk.py", a.url, "").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
