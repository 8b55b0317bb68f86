package objects

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// chunked encodes data as clients do, in chunks of a size.
func chunked(data []byte, size int, signer *chunkSigner, trailer string) string {
	var b strings.Builder
	for first := true; first || len(data) > 0; first = false {
		if len(data) == 0 {
			break
		}
		n := min(size, len(data))
		b.WriteString(chunkHeader(data[:n], signer))
		b.Write(data[:n])
		b.WriteString("\r\n")
		data = data[n:]
	}
	b.WriteString(chunkHeader(nil, signer))
	if trailer != "" {
		b.WriteString(trailer + "\r\n")
		if signer != nil {
			b.WriteString("x-amz-trailer-signature:" + signer.trailer(trailer+"\n") + "\r\n")
		}
	}
	return b.String() + "\r\n"
}

func chunkHeader(data []byte, signer *chunkSigner) string {
	if signer == nil {
		return fmt.Sprintf("%x\r\n", len(data))
	}
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%x;chunk-signature=%s\r\n", len(data), signer.chunk(sum[:]))
}

func newSigner() *chunkSigner {
	return &chunkSigner{key: []byte("key"), date: "20260101T000000Z", scope: "20260101/us-east-1/s3/aws4_request", previous: strings.Repeat("0", 64)}
}

func crc(data []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(data)))
}

func TestChunked(t *testing.T) {
	data := []byte(strings.Repeat("0123456789", 2000))
	good := chunked(data, 7000, newSigner(), "x-amz-checksum-crc32:"+crc(data))
	for name, x := range map[string]struct {
		body   string
		signer *chunkSigner
		total  int
		err    error
	}{
		"unsigned":                {chunked(data, 7000, nil, "x-amz-checksum-crc32:"+crc(data)), nil, len(data), nil},
		"one byte a chunk":        {chunked(data[:50], 1, nil, "x-a:b"), nil, 50, nil},
		"nothing":                 {chunked(nil, 1, nil, ""), nil, 0, nil},
		"signed":                  {good, newSigner(), len(data), nil},
		"signed, no trailer":      {chunked(data, 7000, newSigner(), ""), newSigner(), len(data), nil},
		"a changed byte":          {strings.Replace(good, "0123", "0124", 1), newSigner(), len(data), errChunkSig},
		"a changed trailer":       {strings.Replace(good, "crc32:", "crc32:A", 1), newSigner(), len(data), errChunkSig},
		"without signatures":      {chunked(data, 7000, nil, ""), newSigner(), len(data), errChunkSig},
		"an unsigned trailer":     {strings.TrimSuffix(chunked(data, 7000, newSigner(), ""), "\r\n") + "x:y\r\n\r\n", newSigner(), len(data), errChunkSig},
		"shorter than said":       {chunked(data, 7000, nil, ""), nil, len(data) + 1, errLength},
		"longer than said":        {chunked(data, 7000, nil, ""), nil, len(data) - 1, errLength},
		"cut off in a chunk":      {chunked(data, 7000, nil, "")[:5000], nil, len(data), io.ErrUnexpectedEOF},
		"cut off before the end":  {strings.TrimSuffix(chunked(data, 7000, nil, ""), "0\r\n\r\n"), nil, len(data), io.ErrUnexpectedEOF},
		"negative":                {"-1\r\nx\r\n0\r\n\r\n", nil, 1, errFraming},
		"huge":                    {"7fffffffffffffff\r\nx\r\n0\r\n\r\n", nil, 1, errLength},
		"overflow":                {"10000000000000001\r\nx\r\n0\r\n\r\n", nil, 1, errFraming},
		"no number":               {"zz\r\nx\r\n0\r\n\r\n", nil, 1, errFraming},
		"a line without an end":   {strings.Repeat("1", 100000), nil, 1, errFraming},
		"more than a chunk":       {"1\r\nxy\r\n0\r\n\r\n", nil, 1, errFraming},
		"many trailers":           {"0\r\n" + strings.Repeat("a:b\r\n", 100) + "\r\n", nil, 0, errFraming},
		"a trailer without colon": {"0\r\nabc\r\n\r\n", nil, 0, errFraming},
	} {
		r := newChunkedReader(strings.NewReader(x.body), x.signer, int64(x.total), http.Header{})
		got, err := io.ReadAll(r)
		if !errors.Is(err, x.err) || err != nil && x.err == nil {
			t.Errorf("%s: %v, want %v", name, err, x.err)
		}
		if err == nil && !bytes.Equal(got, data[:x.total]) {
			t.Errorf("%s: other bytes", name)
		}
	}
}

// FuzzChunked: no body makes the reader say more than was announced, or end well
// before it.
func FuzzChunked(f *testing.F) {
	data := []byte("some data that is longer than a chunk")
	f.Add([]byte(chunked(data, 10, nil, "x-amz-checksum-crc32:"+crc(data))), uint16(len(data)), false)
	f.Add([]byte(chunked(data, 10, newSigner(), "x-amz-checksum-crc32:"+crc(data))), uint16(len(data)), true)
	f.Add([]byte("0\r\n\r\n"), uint16(0), false)
	f.Add([]byte("a;chunk-signature=x\r\n"), uint16(10), true)
	f.Fuzz(func(t *testing.T, body []byte, total uint16, sign bool) {
		var signer *chunkSigner
		if sign {
			signer = newSigner()
		}
		h := http.Header{}
		r := newChunkedReader(iotestReader{bytes.NewReader(body)}, signer, int64(total), h)
		got, err := io.ReadAll(r)
		if len(got) > int(total) || len(got) > len(body) {
			t.Fatalf("%d bytes of %d", len(got), total)
		}
		if err == nil && len(got) != int(total) {
			t.Fatalf("ended well after %d bytes of %d", len(got), total)
		}
		if len(h) > maxTrailers {
			t.Fatalf("%d trailers", len(h))
		}
		// What was read well is read the same way when it is encoded anew.
		if err == nil && !sign {
			again, err := io.ReadAll(newChunkedReader(strings.NewReader(chunked(got, 3, nil, "a:b")), nil, int64(total), http.Header{}))
			if err != nil || !bytes.Equal(again, got) {
				t.Fatalf("%q %v", again, err)
			}
		}
	})
}

// iotestReader gives a byte at a time.
type iotestReader struct{ r io.Reader }

func (r iotestReader) Read(p []byte) (int, error) {
	if len(p) > 1 {
		p = p[:1]
	}
	return r.r.Read(p)
}

// signRequest signs as AWS's clients do, with headers of our choice.
func signRequest(r *http.Request, key, secret, payload string, at time.Time, extra ...string) *chunkSigner {
	date := at.UTC().Format(timeFormat)
	r.Header.Set("X-Amz-Date", date)
	r.Header.Set("X-Amz-Content-Sha256", payload)
	names := append([]string{"host", "x-amz-content-sha256", "x-amz-date"}, extra...)
	var headers strings.Builder
	r.Host = r.URL.Host
	for _, n := range names {
		headers.WriteString(n + ":" + headerValue(r, n) + "\n")
	}
	signed := strings.Join(names, ";")
	canonical := r.Method + "\n" + escape(r.URL.Path, true) + "\n" + canonicalQuery(r.URL.Query()) + "\n" + headers.String() + "\n" + signed + "\n" + payload
	sum := sha256.Sum256([]byte(canonical))
	scope := date[:8] + "/us-east-1/s3/aws4_request"
	k := signingKey(secret, date[:8], "us-east-1")
	signature := sign(k, algorithm+"\n"+date+"\n"+scope+"\n"+hex.EncodeToString(sum[:]))
	r.Header.Set("Authorization", algorithm+" Credential="+key+"/"+scope+", SignedHeaders="+signed+", Signature="+signature)
	return &chunkSigner{key: k, date: date, scope: scope, previous: signature}
}

// The signature is that of AWS's own example of GET Object.
func TestSignature(t *testing.T) {
	r := httptest.NewRequest("GET", "https://examplebucket.s3.amazonaws.com/test.txt", nil)
	r.Header.Set("Range", "bytes=0-9")
	r.Header.Set("X-Amz-Content-Sha256", emptySHA256)
	r.Header.Set("X-Amz-Date", "20130524T000000Z")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")
	grants := func(context.Context, string) (*Grant, error) {
		return &Grant{Secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}, nil
	}
	at := time.Date(2013, 5, 24, 0, 1, 0, 0, time.UTC)
	if _, err := authenticate(r, grants, at); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(r *http.Request){
		"method": func(r *http.Request) { r.Method = "PUT" },
		"path":   func(r *http.Request) { r.URL.Path = "/test2.txt" },
		"query":  func(r *http.Request) { r.URL.RawQuery = "acl" },
		"header": func(r *http.Request) { r.Header.Set("Range", "bytes=0-10") },
		"host":   func(r *http.Request) { r.Host = "other" },
		"body":   func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", unsigned) },
		"day": func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "/20130524/", "/20130525/", 1))
		},
		"unsigned header": func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/b/k") },
		"scheme":          func(r *http.Request) { r.Header.Set("Authorization", "AWS AK:sig") },
		"nothing":         func(r *http.Request) { r.Header.Del("Authorization") },
	} {
		c := r.Clone(t.Context())
		change(c)
		if _, err := authenticate(c, grants, at); err == nil {
			t.Errorf("a changed %s is not seen", name)
		}
	}
}

// What the AWS SDK for JavaScript sends, and what can be wrong with it.
func TestBodies(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CreateBucket("b"); err != nil {
		t.Fatal(err)
	}
	h := &Handler{Store: s, MaxObject: 1 << 20, Prefix: "/s3", Grants: func(_ context.Context, key string) (*Grant, error) {
		return &Grant{Secret: "secret", Bucket: "b", Prefix: "org/"}, nil
	}}
	server := httptest.NewServer(h)
	defer server.Close()
	data := []byte(strings.Repeat("data", 5000))
	put := func(payload, body string, header map[string]string, fix func(s *chunkSigner) string) (int, string) {
		t.Helper()
		r, err := http.NewRequest("PUT", server.URL+"/s3/b/org/k%20%2B%C3%A4?x-id=PutObject", nil)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for k, v := range header {
			r.Header.Set(k, v)
			if strings.HasPrefix(strings.ToLower(k), "x-amz-") {
				names = append(names, strings.ToLower(k))
			}
		}
		signer := signRequest(r, "AK", "secret", payload, time.Now(), names...)
		if fix != nil {
			body = fix(signer)
		}
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		out, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(out)
	}
	decoded := map[string]string{"Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": fmt.Sprint(len(data)), "X-Amz-Trailer": "x-amz-checksum-crc32"}
	sum := sha256.Sum256(data)
	for name, x := range map[string]struct {
		payload, body string
		header        map[string]string
		fix           func(s *chunkSigner) string
		status        int
		code          string
	}{
		"unsigned trailer": {streamingUnsignTrailer, chunked(data, 8192, nil, "x-amz-checksum-crc32:"+crc(data)), decoded, nil, 200, ""},
		"wrong trailer":    {streamingUnsignTrailer, chunked(data, 8192, nil, "x-amz-checksum-crc32:"+crc(data[1:])), decoded, nil, 400, "BadDigest"},
		"no trailer":       {streamingUnsignTrailer, chunked(data, 8192, nil, ""), decoded, nil, 400, "BadDigest"},
		"signed trailer": {streamingTrailer, "", decoded, func(s *chunkSigner) string {
			return chunked(data, 8192, s, "x-amz-checksum-crc32:"+crc(data))
		}, 200, ""},
		"signed by another": {streamingTrailer, "", decoded, func(s *chunkSigner) string {
			s.key = []byte("another")
			return chunked(data, 8192, s, "x-amz-checksum-crc32:"+crc(data))
		}, 403, "SignatureDoesNotMatch"},
		"signed chunks":  {streaming, "", map[string]string{"X-Amz-Decoded-Content-Length": fmt.Sprint(len(data))}, func(s *chunkSigner) string { return chunked(data, 8192, s, "") }, 200, ""},
		"whole, signed":  {hex.EncodeToString(sum[:]), string(data), nil, nil, 200, ""},
		"whole, changed": {hex.EncodeToString(sum[:]), strings.Repeat("date", 5000), nil, nil, 400, "XAmzContentSHA256Mismatch"},
		"unsigned":       {unsigned, string(data), map[string]string{"X-Amz-Checksum-Crc32": crc(data)}, nil, 200, ""},
		"wrong checksum": {unsigned, string(data), map[string]string{"X-Amz-Checksum-Crc32": crc(data[1:])}, nil, 400, "BadDigest"},
		"wrong MD5":      {unsigned, string(data), map[string]string{"Content-Md5": "AAAAAAAAAAAAAAAAAAAAAA=="}, nil, 400, "BadDigest"},
		"too large":      {unsigned, strings.Repeat("x", 1<<20+1), nil, nil, 400, "EntityTooLarge"},
		"too large, decoded": {streamingUnsignTrailer, chunked(data, 8192, nil, ""),
			map[string]string{"X-Amz-Decoded-Content-Length": fmt.Sprint(1 << 40)}, nil, 400, "EntityTooLarge"},
		"no length":       {streamingUnsignTrailer, chunked(data, 8192, nil, ""), nil, nil, 411, "MissingContentLength"},
		"unknown payload": {"STREAMING-SOMETHING", string(data), nil, nil, 400, "InvalidArgument"},
		"tags":            {unsigned, string(data), map[string]string{"X-Amz-Tagging": "a=b"}, nil, 501, "NotImplemented"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.Delete("b", "org/k +ä"); err != nil {
				t.Fatal(err)
			}
			status, body := put(x.payload, x.body, x.header, x.fix)
			if status != x.status || !strings.Contains(body, x.code) {
				t.Fatalf("%d %s", status, body)
			}
			o, f, err := s.Open("b", "org/k +ä")
			if status != 200 {
				if !errors.Is(err, errNoKey) {
					t.Fatalf("something is stored: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, _ := io.ReadAll(f)
			if !bytes.Equal(got, data) || o.Headers["Content-Encoding"] != "" {
				t.Fatalf("%d bytes, %v", len(got), o.Headers)
			}
		})
	}
}
