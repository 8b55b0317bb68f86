package daytona_test

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
)

func at(line, character int) daytona.Position {
	return daytona.Position{Line: line, Character: character}
}

func change(from, to daytona.Position, text string) daytona.TextEdit {
	return daytona.TextEdit{Range: daytona.Range{Start: from, End: to}, NewText: text}
}

func TestApplyTextEdits(t *testing.T) {
	for _, c := range []struct {
		name, text string
		edits      []daytona.TextEdit
		want       string // "!" begins an error
	}{
		{"nothing", "a\nb", nil, "a\nb"},
		{"in any order", "one two\nthree\n", []daytona.TextEdit{change(at(1, 0), at(1, 5), "drei"), change(at(0, 0), at(0, 3), "eins")}, "eins two\ndrei\n"},
		{"insertions at one place", "x", []daytona.TextEdit{change(at(0, 1), at(0, 1), "1"), change(at(0, 1), at(0, 1), "2")}, "x12"},
		{"an insertion before what is replaced", "abc", []daytona.TextEdit{change(at(0, 1), at(0, 2), "B"), change(at(0, 1), at(0, 1), "-")}, "a-Bc"},
		{"code units", "a😀é z", []daytona.TextEdit{change(at(0, 3), at(0, 4), "E"), change(at(0, 5), at(0, 6), "Z")}, "a😀E Z"},
		{"all lines", "a\nb\n", []daytona.TextEdit{change(at(0, 0), at(2, 0), "c")}, "c"},
		{"beyond the last line", "a\nb", []daytona.TextEdit{change(at(0, 0), at(2, 0), "c")}, "c"},
		{"beyond the end of a line", "a\r\nb", []daytona.TextEdit{change(at(0, 1), at(0, 99), "!")}, "a!\r\nb"},
		{"old lines", "a\rb\r\nc", []daytona.TextEdit{change(at(1, 0), at(1, 1), "B"), change(at(2, 0), at(2, 1), "C")}, "a\rB\r\nC"},
		{"overlap", "abc", []daytona.TextEdit{change(at(0, 0), at(0, 2), "x"), change(at(0, 1), at(0, 3), "y")}, "!overlap"},
		{"backwards", "abc", []daytona.TextEdit{change(at(0, 2), at(0, 1), "x")}, "!there is no 1:3 to 1:2"},
		{"no such line", "abc", []daytona.TextEdit{change(at(7, 0), at(7, 0), "x")}, "!of 1 lines"},
		{"negative", "abc", []daytona.TextEdit{change(at(0, -1), at(0, 0), "x")}, "!there is no"},
	} {
		got, err := daytona.ApplyTextEdits(c.text, c.edits)
		if wrong, ok := strings.CutPrefix(c.want, "!"); ok {
			if err == nil || !strings.Contains(err.Error(), wrong) {
				t.Errorf("%s: %q, %v; want an error with %q", c.name, got, err, wrong)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestWorkspaceEdit(t *testing.T) {
	ctx := t.Context()
	client := daytona.New(daytonatest.NewFake())
	defer client.Close()
	sb, err := client.Create(ctx, daytona.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	files, dir := sb.FileSystem(), sb.Info().WorkDir
	uri := func(name string) string { return "file://" + dir + "/" + name }
	for _, name := range []string{"a b", "old", "gone", "kept"} {
		if err := files.WriteFile(ctx, name, []byte(name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	edit := daytona.WorkspaceEdit{Changes: []daytona.FileChange{
		{Kind: daytona.FileEdit, URI: uri("a%20b"), Edits: []daytona.TextEdit{change(at(0, 1), at(0, 2), "-")}},
		{Kind: daytona.FileCreate, URI: uri("made")}, {Kind: daytona.FileCreate, URI: uri("kept")},
		{Kind: daytona.FileEdit, URI: uri("made"), Edits: []daytona.TextEdit{change(at(0, 0), at(0, 0), "new")}},
		{Kind: daytona.FileRename, URI: uri("old"), NewURI: uri("new")}, {Kind: daytona.FileDelete, URI: uri("gone")},
	}}
	if err := edit.Apply(ctx, files); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a b": "a-b", "made": "new", "kept": "kept", "new": "old"} {
		if b, err := files.ReadFile(ctx, name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if info, err := files.Stat(ctx, "a b"); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	for _, name := range []string{"old", "gone"} {
		if _, err := files.Stat(ctx, name); !errors.Is(err, daytona.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range []struct {
		change daytona.FileChange
		kind   daytona.Kind
	}{
		{daytona.FileChange{Kind: daytona.FileEdit, URI: "untitled:1"}, daytona.KindInvalid}, {daytona.FileChange{Kind: daytona.FileEdit, URI: "file://host/a"}, daytona.KindInvalid},
		{daytona.FileChange{Kind: daytona.FileEdit, URI: uri("nowhere")}, daytona.KindNotFound}, {daytona.FileChange{Kind: "move", URI: uri("kept")}, daytona.KindUnsupported},
		{daytona.FileChange{Kind: daytona.FileEdit, URI: uri("kept"), Edits: []daytona.TextEdit{change(at(9, 9), at(9, 9), "")}}, daytona.KindInvalid},
		{daytona.FileChange{Kind: daytona.FileRename, URI: uri("kept"), NewURI: "x"}, daytona.KindInvalid},
	} {
		if err := (daytona.WorkspaceEdit{Changes: []daytona.FileChange{c.change}}).Apply(ctx, files); daytona.KindOf(err) != c.kind {
			t.Errorf("%+v: %v, want %s", c.change, err, c.kind)
		}
	}
}

func TestLSPWords(t *testing.T) {
	for got, want := range map[string]string{
		daytona.SymbolKind(5).String(): "class", daytona.SymbolKind(26).String(): "type-parameter", daytona.SymbolKind(27).String(): "27",
		daytona.CompletionKind(2).String(): "method", daytona.CompletionKind(0).String(): "0", daytona.SeverityError.String(): "error",
		daytona.Diagnostic{Range: daytona.Range{Start: at(1, 2)}, Severity: daytona.SeverityHint, Message: "m"}.String(): "2:3: hint: m",
		daytona.Location{URI: "file:///a%20b"}.Path():                                                                    "/a b",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// FuzzApplyTextEdits compares with a text of UTF-16 code units, where each
// edit replaces what is between two places.
func FuzzApplyTextEdits(f *testing.F) {
	f.Add("one\ntwo 😀\r\nthree", 0, 1, 1, 5, "x")
	f.Add("", 0, 0, 1, 0, "y")
	f.Add("\r\r\n", 1, 0, 2, 9, "")
	f.Fuzz(func(t *testing.T, text string, line, character, endLine, endCharacter int, with string) {
		if !utf8.ValidString(text) || !utf8.ValidString(with) || strings.Contains(strings.ReplaceAll(text, "\r\n", ""), "\r") {
			return
		}
		got, err := daytona.ApplyTextEdits(text, []daytona.TextEdit{change(at(line, character), at(endLine, endCharacter), with)})
		if err != nil {
			return
		}
		lines := strings.SplitAfter(text, "\n")
		offset := func(line, character int) int {
			if line >= len(lines) {
				return len(text)
			}
			n := len(strings.Join(lines[:line], ""))
			units := utf16.Encode([]rune(strings.TrimRight(lines[line], "\r\n")))
			units = units[:min(character, len(units))]
			if len(units) > 0 && units[len(units)-1]>>10 == 0x36 { // half of a pair
				units = units[:len(units)-1]
			}
			return n + len(string(utf16.Decode(units)))
		}
		if want := text[:offset(line, character)] + with + text[offset(endLine, endCharacter):]; got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}
