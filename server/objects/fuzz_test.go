package objects

import (
	"bufio"
	"context"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// FuzzSignature: no request is taken for signed but one whose signature was made
// with the secret, whatever its headers and its query say; it is refused in XML.
func FuzzSignature(f *testing.F) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	h := &Handler{Now: func() time.Time { return now }, Grants: func(_ context.Context, key string) (*Grant, error) {
		if key == "KEY" {
			return &Grant{Secret: "a secret that is not guessed"}, nil
		}
		return nil, nil
	}}
	date := now.Format(timeFormat)
	scope := "KEY/" + date[:8] + "/us-east-1/s3/aws4_request"
	f.Add("/daytona/x", "Authorization: "+algorithm+" Credential="+scope+", SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="+
		strings.Repeat("0", 64)+"\r\nX-Amz-Date: "+date+"\r\nX-Amz-Content-Sha256: "+unsigned+"\r\n")
	f.Add("/daytona/x?X-Amz-Algorithm="+algorithm+"&X-Amz-Credential="+scope+"&X-Amz-Date="+date+"&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature="+
		strings.Repeat("f", 64), "")
	f.Add("/%00?X-Amz-Algorithm=&X-Amz-Expires=-1", "Authorization: "+algorithm+" =,=,\r\n")
	f.Fuzz(func(t *testing.T, target, headers string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("PUT " + target + " HTTP/1.1\r\nHost: h\r\n" + headers + "\r\n")))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var answer struct {
			XMLName xml.Name `xml:"Error"`
			Code    string
		}
		if err := xml.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Code == "" || w.Code < 400 || w.Code > 499 {
			t.Errorf("%q %q: %d %q, %v", target, headers, w.Code, w.Body, err)
		}
	})
}
