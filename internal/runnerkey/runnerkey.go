// Package runnerkey is what the server and a runner both know of a runner's key.
package runnerkey

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"

	"github.com/daytona-go/daytona"
)

// New returns a new key, of 130 random bits.
func New() string { return "rnr_" + strings.ToLower(rand.Text()) }

// Hash is what the server keeps of a key. Keys are random, so that nothing
// slower is needed.
func Hash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// Access is the key that opens a runner's own HTTP surface, for the proxy and
// the SSH gateway. It is made of the runner's key, so that the runner knows it
// without being told, and is not that key: who has it can't act as the runner.
func Access(key string) string {
	h := hmac.New(sha256.New, []byte(key))
	h.Write([]byte("daytona runner access 1"))
	return "rna_" + hex.EncodeToString(h.Sum(nil))
}

// Join is all that a runner must know to join a server.
type Join struct {
	// URL is that of the server's API, such as "https://daytona.example.com/api".
	URL string `json:"url"`
	// Key is the runner's key.
	Key string `json:"key"`
}

const joinPrefix = "dtj_"

// String is j as one word, for a command line.
func (j Join) String() string {
	data, err := json.Marshal(j)
	if err != nil {
		panic(err) // two strings
	}
	return joinPrefix + base64.RawURLEncoding.EncodeToString(data)
}

// ParseJoin reads what String wrote. Its error does not show the token.
func ParseJoin(token string) (Join, error) {
	bad := &daytona.Error{Kind: daytona.KindInvalid, Op: "join server", Message: "the token is not one; `daytona runner --join` takes what the server showed when the runner was made"}
	rest, ok := strings.CutPrefix(strings.TrimSpace(token), joinPrefix)
	if !ok {
		return Join{}, bad
	}
	data, err := base64.RawURLEncoding.DecodeString(rest)
	var j Join
	if err != nil || json.Unmarshal(data, &j) != nil || j.Key == "" {
		return Join{}, bad
	}
	if u, err := url.Parse(j.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return Join{}, bad
	}
	return j, nil
}
