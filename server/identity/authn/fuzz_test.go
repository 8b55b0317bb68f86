package authn_test

import (
	"errors"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity/authn"
)

// Whatever somebody sends, they are nobody, and nothing breaks.
func FuzzAuthenticate(f *testing.F) {
	for _, s := range []string{"", "dtn_", "eyJ.eyJ.", "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL3giLCJleHAiOjk5OTk5OTk5OTl9.AAAA", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL3gifQ."} {
		f.Add(s)
	}
	t, err := authn.NewTokens(authn.TokensConfig{Issuer: "https://x", Audience: "api", KeySet: noKeys{}})
	if err != nil {
		f.Fatal(err)
	}
	a, err := authn.New(authn.Config{Tokens: t, Users: &users{}, Keys: others{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, bearer string) {
		switch bearer {
		case "dtn_user", "dtn_root", "keys fail":
			return
		}
		if p, err := a.Authenticate(t.Context(), bearer); !errors.Is(err, daytona.ErrUnauthorized) {
			t.Errorf("%q: %+v %v", bearer, p, err)
		}
	})
}
