package interpreter_test

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSDKs asks the official SDKs, which see what they would of any agent.
func TestSDKs(t *testing.T) {
	needs(t, "python3", "-c", "pass")
	want := `{
		"state": ["", "", null], "output": ["42\n", "e\n", null], "value": ["", "", null],
		"exception": ["", "", ["ZeroDivisionError", "division by zero", true]], "env": ["v\n", "", null],
		"timeout": ["DaytonaTimeoutError", false], "context": ["/", "python", true, true], "in context": ["/ False\n", "", null],
		"deleted": ["DaytonaConnectionError", true], "left": 0`
	charts := `, "charts": [["LineChart", "Line"], ["LineChart", "Dates"], ["LineChart", "Names"], ["ScatterChart", "Scatter"],
		["BarChart", "Bar"], ["PieChart", "Pie"], ["BoxAndWhiskerChart", "Box"], ["CompositeChart", "Both"], ["Chart", "Image"]]`
	for name, variable := range map[string]string{"py": "DAYTONA_TEST_SDK_PY", "ts": "DAYTONA_TEST_SDK_TS", "ts190": "DAYTONA_TEST_SDK_TS190"} {
		t.Run(name, func(t *testing.T) {
			where := os.Getenv(variable)
			if where == "" {
				t.Skipf("%s does not say where the SDK is", variable)
			}
			a := startAgent(t)
			srv := httptest.NewServer(a.mux)
			defer srv.Close()
			cmd := exec.CommandContext(t.Context(), "node", filepath.Join("testdata", "sdk.cjs"), where, srv.URL)
			want := want
			if name == "py" {
				cmd = exec.CommandContext(t.Context(), where, filepath.Join("testdata", "sdk.py"), srv.URL)
				if exec.Command("/usr/bin/python3", "-c", "import matplotlib").Run() == nil {
					cmd.Args = append(cmd.Args, filepath.Join("testdata", "charts.py"))
					want += charts
				}
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			var got, expected map[string]any
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := json.Unmarshal([]byte(want+"}"), &expected); err != nil {
				t.Fatal(err)
			}
			if name == "ts190" {
				// It had no error of its own for a connection.
				expected["deleted"] = got["deleted"]
			}
			for k, w := range expected {
				a, _ := json.Marshal(w)
				if b, _ := json.Marshal(got[k]); !bytes.Equal(a, b) {
					t.Errorf("%s: %s, want %s", k, b, a)
				}
			}
		})
	}
}
