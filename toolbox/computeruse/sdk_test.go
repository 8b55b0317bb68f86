package computeruse_test

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
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

type object = map[string]any

// TestSDKTypeScript calls every operation through the generated clients of both
// generations' TypeScript SDKs.
func TestSDKTypeScript(t *testing.T) {
	for _, variable := range []string{"DAYTONA_TEST_SDK_TS", "DAYTONA_TEST_SDK_TS190"} {
		t.Run(variable, func(t *testing.T) {
			sdk := os.Getenv(variable)
			if sdk == "" {
				t.Skipf("%s does not say where the SDK is", variable)
			}
			want(t, "node", "ffmpeg")
			a := startDesktop(t, nil)
			a.form()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "node", "../../testdata/sdk/toolbox.cjs", sdk, a.url)
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			a.must(err)
			out, err := cmd.StdoutPipe()
			a.must(err)
			a.must(cmd.Start())
			defer cmd.Wait()
			defer in.Close()
			lines := bufio.NewReader(out)
			call := func(status int, method string, args ...any) object {
				t.Helper()
				request, err := json.Marshal(object{"api": "ComputerUseApi", "method": method, "args": args})
				a.must(err)
				_, err = in.Write(append(request, '\n'))
				a.must(err)
				line, err := lines.ReadBytes('\n')
				a.must(err)
				var answer struct {
					Status int
					Data   any
					Error  string
				}
				a.must(json.Unmarshal(line, &answer))
				if answer.Status != status || answer.Error != "" {
					t.Fatalf("%s: %s", method, line)
				}
				data, _ := answer.Data.(object)
				return data
			}
			field := func(of object, name string) any {
				t.Helper()
				v, ok := of[name]
				if !ok {
					t.Errorf("%v has no %s", of, name)
				}
				return v
			}
			id := func(of object) string {
				t.Helper()
				list, _ := of["matches"].([]any)
				if len(list) != 1 {
					t.Fatalf("matches %v", of)
				}
				return list[0].(object)["id"].(string)
			}
			if s := field(call(200, "getComputerUseStatus"), "status"); s != "active" {
				t.Errorf("status %v", s)
			}
			call(200, "getComputerUseSystemStatus")
			field(call(200, "startComputerUse"), "status")
			field(call(200, "getProcessStatus", "x11vnc"), "running")
			field(call(200, "getProcessLogs", "x11vnc"), "logs")
			field(call(200, "getProcessErrors", "xfce4"), "errors")
			field(call(200, "restartProcess", "novnc"), "processName")
			field(call(200, "getDisplayInfo"), "displays")
			field(call(200, "getWindows"), "windows")
			field(call(200, "takeScreenshot", true), "cursorPosition")
			field(call(200, "takeRegionScreenshot", 0, 0, 10, 10), "screenshot")
			field(call(200, "takeCompressedScreenshot", false, "jpeg", 50, 0.5), "sizeBytes")
			field(call(200, "takeCompressedRegionScreenshot", 0, 0, 10, 10, true, "png", nil, 0.5), "screenshot")
			field(call(200, "moveMouse", object{"x": 3, "y": 4}), "x")
			if at := call(200, "getMousePosition"); at["x"] != 3.0 || at["y"] != 4.0 {
				t.Errorf("the mouse is at %v", at)
			}
			field(call(200, "click", object{"x": 3, "y": 4, "button": "left", "double": true}), "y")
			field(call(200, "drag", object{"startX": 3, "startY": 4, "endX": 30, "endY": 40, "button": "left"}), "x")
			if s := field(call(200, "scroll", object{"x": 3, "y": 4, "direction": "up", "amount": 1}), "success"); s != true {
				t.Errorf("scroll: %v", s)
			}
			call(200, "typeText", object{"text": "x", "delay": 1})
			call(200, "pressKey", object{"key": "Return", "modifiers": []string{"shift"}})
			call(200, "pressHotkey", object{"keys": "ctrl+a"})
			call(400, "pressHotkey", object{"keys": ""})

			field(call(200, "getAccessibilityTree", "all", nil, 1), "root")
			button := id(call(200, "findAccessibilityNodes", object{"scope": "all", "name": "Send it", "role": "push button"}))
			entry := id(call(200, "findAccessibilityNodes", object{"scope": "all", "name": "Your name", "nameMatch": "exact"}))
			call(200, "invokeAccessibilityNode", object{"id": button})
			call(200, "focusAccessibilityNode", object{"id": entry})
			call(200, "setAccessibilityNodeValue", object{"id": entry, "value": "x"})
			call(404, "focusAccessibilityNode", object{"id": "nope"})

			film, _ := field(call(201, "startRecording", object{"label": "film"}), "id").(string)
			field(call(200, "getRecording", film), "fileName")
			field(call(200, "stopRecording", object{"id": film}), "durationSeconds")
			field(call(200, "listRecordings"), "recordings")
			call(200, "downloadRecording", film)
			call(204, "deleteRecording", film)
			call(404, "getRecording", film)
			stopped, _ := json.Marshal(call(200, "stopComputerUse"))
			if !strings.Contains(string(stopped), `"running":false`) {
				t.Errorf("stopped: %s", stopped)
			}
		})
	}
}
