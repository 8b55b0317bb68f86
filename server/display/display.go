// Package display has the rule for names and descriptions that people are
// shown: in a dashboard, a mail, a terminal.
package display

import (
	"fmt"
	"regexp"
	"unicode"
	"unicode/utf8"

	"github.com/daytona-go/daytona"
)

// Lengths of names and descriptions, in characters.
const (
	MaxName        = 255
	MaxDescription = 1024
)

var (
	tag = regexp.MustCompile(`<[/!?]?[A-Za-z]|<!--`)
	// A scheme without slashes is one that a browser runs or a mail program opens.
	link = regexp.MustCompile(`(?i)[a-z][a-z0-9+.-]*://|\bwww\.|\b(javascript|vbscript|mailto|data|file):`)
)

// Check returns an error that matches [daytona.ErrInvalid] if value, which the
// wire calls field, is not to be shown, or has more than max characters.
func Check(field, value string, max int) error {
	if !utf8.ValidString(value) || tag.MatchString(value) || link.MatchString(value) || hidden(value) {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: field + " must not contain HTML tags, URLs, or control characters"}
	}
	if n := utf8.RuneCountInString(value); n > max {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf("%s must have at most %d characters, not %d", field, max, n)}
	}
	return nil
}

// Name is Check for what must not be empty.
func Name(field, value string) error {
	if value == "" {
		return &daytona.Error{Kind: daytona.KindInvalid, Message: field + " must not be empty"}
	}
	return Check(field, value, MaxName)
}

// hidden finds control characters, and those that turn the direction of what
// follows: with them a name reads as another one.
func hidden(s string) bool {
	for _, r := range s {
		if unicode.IsControl(r) || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029 {
			return true
		}
	}
	return false
}
