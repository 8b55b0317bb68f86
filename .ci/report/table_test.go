package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stream is what `go test -json` tells of a suite with one capability that is
// there, one that is not, a check that passes and one that is skipped.
func stream(t *testing.T, label, second, why string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range []event{
		{Action: "attr", Test: "TestC", Key: "backendtest.has.shell", Value: "yes"},
		{Action: "attr", Test: "TestC", Key: "backendtest.has." + second, Value: "no: " + why},
		{Action: "attr", Test: "TestC", Key: "backendtest.backend", Value: label},
		{Action: "attr", Test: "TestC", Key: "backendtest.suite", Value: "conformance"},
		{Action: "attr", Test: "TestC", Key: "backendtest.skip.Hard", Value: "too hard"},
		{Action: "pass", Test: "TestC/Easy/part"},
		{Action: "pass", Test: "TestC/Easy"},
		{Action: "skip", Test: "TestC/Hard"},
		{Action: "attr", Test: "TestC/Optional", Key: "backendtest.has.Pauser", Value: "yes"},
		{Action: "pass", Test: "TestC/Optional"},
		{Action: "pass", Test: "TestC"},
		{Action: "pass"},
	} {
		e.Package = module + "/backend/x"
		if err := json.NewEncoder(&b).Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestTable(t *testing.T) {
	dir := t.TempDir()
	doc := filepath.Join(dir, "doc.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(doc, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		t.Helper()
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// see runs suites and puts what they say into the table.
	see := func(check bool, streams ...string) bool {
		t.Helper()
		file := filepath.Join(t.TempDir(), "suites")
		for _, s := range streams {
			if ok, err := report(strings.NewReader(s), "x", "", "", file, ""); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		ok, err := writeTable(doc, file, check)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	write("before\n" + tableBegin + "\n" + tableEnd + "\nafter\n")
	a, b := stream(t, "a", "disk", "none"), stream(t, "b", "disk", "none | little")
	if !see(false, a, b) {
		t.Fatal("not written")
	}
	want := "before\n" + tableBegin + `

| Capability | a | b |
|---|---|---|
| ` + "`shell`" + ` | yes | yes |
| ` + "`disk`" + ` | no<sup>1</sup> | no<sup>2</sup> |
| ` + "`Pauser`" + ` | yes | yes |
| conformance | 2 pass, 1 skipped<sup>3</sup> | 2 pass, 1 skipped<sup>3</sup> |

1. none
2. none | little
3. Hard: too hard

` + tableEnd + "\nafter\n"
	if got := read(); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
	if !see(true, b, a) || !see(true, b) {
		t.Error("what was written differs from what was seen, in another order or in part")
	}
	// One column changes; the other, not seen, stays as it is, with its row.
	changed := stream(t, "b", "disc", "none")
	if see(true, changed) || read() != want {
		t.Error("a difference is not found, or written by a check")
	}
	see(false, changed)
	if got := read(); !strings.Contains(got, "| `disc` | – | no<sup>1</sup> |") || !strings.Contains(got, "| `disk` | no<sup>1</sup> | no<sup>2</sup> |") {
		t.Errorf("after one column was seen:\n%s", got)
	}
	// Once all have changed, the row that none has any more goes.
	see(false, changed, stream(t, "a", "disc", "none"))
	if got := read(); strings.Contains(got, "`disk`") || !strings.Contains(got, "| `disc` | no<sup>1</sup> | no<sup>1</sup> |") {
		t.Errorf("after all columns were seen:\n%s", got)
	}
}
