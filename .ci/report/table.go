package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// fact is one cell of the table of backends, as a suite tells it.
type fact struct {
	Column string   `json:"column"` // the label of a harness
	Row    string   `json:"row"`    // a capability in backticks, or a suite
	Text   string   `json:"text"`
	Why    []string `json:"why,omitempty"`
}

// suites collects what the suites of package backendtest tell in the attributes
// of tests.
type suites struct {
	running map[string]*suite // by package and test
	facts   []fact
}

// suite is one that runs.
type suite struct {
	column, name            string
	has                     []fact
	why                     []string // of checks that the harness skips
	passed, failed, skipped int
}

// see takes in one event.
func (s *suites) see(e *event) {
	if s.running == nil {
		s.running = map[string]*suite{}
	}
	key := e.Package + " " + e.Test
	if e.Action == "attr" {
		name, ours := strings.CutPrefix(e.Key, "backendtest.")
		// What is not under backend/ is no backend that anybody could choose.
		if !ours || !strings.HasPrefix(e.Package, module+"/backend/") {
			return
		}
		u := s.around(key)
		if u == nil {
			u = &suite{}
			s.running[key] = u
		}
		switch what, of, _ := strings.Cut(name, "."); what {
		case "backend":
			u.column = e.Value
		case "suite":
			u.name = e.Value
		case "skip":
			u.why = append(u.why, of+": "+e.Value)
		case "has":
			f := fact{Row: "`" + of + "`", Text: e.Value}
			if text, why, ok := strings.Cut(e.Value, ": "); ok {
				f.Text, f.Why = text, []string{why}
			}
			u.has = append(u.has, f)
		}
		return
	}
	if e.Action != "pass" && e.Action != "fail" && e.Action != "skip" || e.Test == "" {
		return
	}
	if u := s.running[key]; u != nil {
		delete(s.running, key)
		s.facts = append(s.facts, u.facts()...)
	} else if i := strings.LastIndexByte(key, '/'); i > 0 && s.running[key[:i]] != nil {
		u := s.running[key[:i]]
		switch e.Action {
		case "pass":
			u.passed++
		case "fail":
			u.failed++
		case "skip":
			u.skipped++
		}
	}
}

// around is the suite that a test is or belongs to.
func (s *suites) around(key string) *suite {
	for {
		if u := s.running[key]; u != nil {
			return u
		}
		i := strings.LastIndexByte(key, '/')
		if i < strings.IndexByte(key, ' ') {
			return nil
		}
		key = key[:i]
	}
}

func (u *suite) facts() []fact {
	if u.column == "" || u.name == "" {
		return nil // it has not begun
	}
	sum := fact{Row: u.name, Text: fmt.Sprintf("%d pass", u.passed), Why: u.why}
	if u.skipped > 0 {
		sum.Text += fmt.Sprintf(", %d skipped", u.skipped)
	}
	if u.failed > 0 {
		sum.Text += fmt.Sprintf(", %d FAIL", u.failed)
	}
	all := append(u.has, sum)
	for i := range all {
		all[i].Column = u.column
	}
	return all
}

// save appends the facts to a file.
func (s *suites) save(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	for _, x := range s.facts {
		if err := enc.Encode(x); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// table is the table of backends.
type table struct {
	columns, rows []string
	cells         map[[2]string]fact // by column and row
}

func (t *table) add(f fact) {
	if !slices.Contains(t.columns, f.Column) {
		t.columns = append(t.columns, f.Column)
	}
	if !slices.Contains(t.rows, f.Row) {
		t.rows = append(t.rows, f.Row)
	}
	t.cells[[2]string{f.Column, f.Row}] = f
}

const (
	tableBegin = "<!-- What follows is written by `make table`. -->"
	tableEnd   = "<!-- What precedes is written by `make table`. -->"
	noCell     = "–" // the suite is not run there
)

var (
	cellForm = regexp.MustCompile(`^(.*?)(?:<sup>([0-9, ]+)</sup>)?$`)
	noteForm = regexp.MustCompile(`^([0-9]+)\. (.*)$`)
)

// parseTable reads what String has written.
func parseTable(text string) (*table, error) {
	t := &table{cells: map[[2]string]fact{}}
	notes := map[string]string{}
	for line := range strings.Lines(text) {
		if m := noteForm.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			notes[m[1]] = m[2]
		}
	}
	for line := range strings.Lines(text) {
		line, isRow := strings.CutPrefix(strings.TrimSpace(line), "| ")
		if !isRow {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(line, " |"), " | ")
		if t.columns == nil {
			t.columns = cells[1:]
			continue
		}
		if len(cells) != len(t.columns)+1 {
			return nil, fmt.Errorf("the row %q has %d cells, not %d", cells[0], len(cells), len(t.columns)+1)
		}
		t.rows = append(t.rows, cells[0])
		for i, c := range cells[1:] {
			if c == noCell {
				continue
			}
			f := fact{Column: t.columns[i], Row: cells[0]}
			m := cellForm.FindStringSubmatch(c)
			f.Text = m[1]
			for n := range strings.FieldsFuncSeq(m[2], func(r rune) bool { return r == ',' || r == ' ' }) {
				f.Why = append(f.Why, notes[n])
			}
			t.add(f)
		}
	}
	return t, nil
}

// merge puts what was seen into the table. What was not seen, for want of an
// engine or a user to run as, stays; a row goes when all columns were seen and
// none has it.
func (t *table) merge(facts []fact) {
	seen := &table{cells: map[[2]string]fact{}}
	for _, f := range facts {
		seen.add(f)
	}
	if !slices.ContainsFunc(t.columns, func(c string) bool { return !slices.Contains(seen.columns, c) }) {
		t.rows = slices.DeleteFunc(t.rows, func(r string) bool { return !slices.Contains(seen.rows, r) })
	}
	for _, f := range facts {
		t.add(f)
	}
	// Capabilities come first, then the suites.
	slices.SortStableFunc(t.rows, func(a, b string) int {
		return cmp.Compare(strings.Index(b, "`"), strings.Index(a, "`"))
	})
}

func (t *table) String() string {
	var b strings.Builder
	var notes []string
	row := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	row(append([]string{"Capability"}, t.columns...))
	b.WriteString(strings.Repeat("|---", len(t.columns)+1) + "|\n")
	for _, r := range t.rows {
		line := []string{r}
		for _, c := range t.columns {
			f, ok := t.cells[[2]string{c, r}]
			if !ok {
				line = append(line, noCell)
				continue
			}
			var numbers []string
			for _, why := range f.Why {
				i := slices.Index(notes, why)
				if i < 0 {
					i = len(notes)
					notes = append(notes, why)
				}
				numbers = append(numbers, strconv.Itoa(i+1))
			}
			if len(numbers) > 0 {
				f.Text += "<sup>" + strings.Join(numbers, ", ") + "</sup>"
			}
			line = append(line, f.Text)
		}
		row(line)
	}
	b.WriteString("\n")
	for i, n := range notes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, n)
	}
	return b.String()
}

// writeTable puts the facts of a file into the table of a document, or checks
// that they are there.
func writeTable(doc, from string, check bool) (ok bool, err error) {
	text, err := os.ReadFile(doc)
	if err != nil {
		return false, err
	}
	head, rest, found := strings.Cut(string(text), tableBegin+"\n")
	old, tail, closed := strings.Cut(rest, tableEnd+"\n")
	if !found || !closed {
		return false, fmt.Errorf("%s lacks one of the lines %q and %q", doc, tableBegin, tableEnd)
	}
	t, err := parseTable(old)
	if err != nil {
		return false, fmt.Errorf("%s: %w", doc, err)
	}
	facts, err := readFacts(from)
	if err != nil {
		return false, err
	}
	t.merge(facts)
	now := head + tableBegin + "\n\n" + t.String() + "\n" + tableEnd + "\n" + tail
	if now == string(text) {
		fmt.Printf("%s says what the suites say\n", doc)
		return true, nil
	}
	if !check {
		return true, os.WriteFile(doc, []byte(now), 0o644)
	}
	fmt.Printf("%s does not say what the suites say; `make table SUITES=%s` corrects it:\n", doc, from)
	diff := exec.Command("diff", "-u", "--label", doc, "--label", "the suites", doc, "-")
	diff.Stdin, diff.Stdout, diff.Stderr = strings.NewReader(now), os.Stdout, os.Stderr
	if err := diff.Run(); err != nil {
		if _, differs := errors.AsType[*exec.ExitError](err); !differs {
			return false, err
		}
	}
	return false, nil
}

// readFacts reads what save has written.
func readFacts(file string) ([]fact, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []fact
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var x fact
		if err := json.Unmarshal(lines.Bytes(), &x); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		// They are to stand between the bars of a table.
		x.Text = strings.ReplaceAll(x.Text, "|", "/")
		all = append(all, x)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no suite was run", file)
	}
	return all, nil
}
