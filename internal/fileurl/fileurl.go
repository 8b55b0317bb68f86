// Package fileurl signs URLs for single files and checks them, as the public
// toolbox API has it: an HMAC-SHA256, with the sandbox's signing key, of the
// method, the path and the time until which it holds.
package fileurl

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// What is wrong with a URL.
var (
	ErrSignature = errors.New("the signature of the URL is wrong")
	ErrExpired   = errors.New("the URL has expired")
)

// Routes that URLs are for.
const (
	DownloadRoute = "/files/download"  // GET
	UploadRoute   = "/files/upload-v2" // POST
)

// MethodOf is the method of a route; "" if it is none that can be signed.
func MethodOf(route string) string {
	switch route {
	case DownloadRoute:
		return "GET"
	case UploadRoute:
		return "POST"
	}
	return ""
}

// Signature signs; expires is in seconds since 1970, 0 for never.
func Signature(key, method, path string, expires int64) string {
	mac := hmac.New(sha256.New, []byte(key))
	fmt.Fprintf(mac, "v1:files:%s:%s:%d", method, path, expires)
	return "v1_" + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Query returns the parameters of a signed URL.
func Query(key, method, path string, expires int64) url.Values {
	return url.Values{"path": {path}, "expires": {strconv.FormatInt(expires, 10)}, "signature": {Signature(key, method, path, expires)}}
}

// Verify checks the parameters of a URL and returns the path of its file.
func Verify(key, method string, q url.Values, now time.Time) (path string, err error) {
	path = q.Get("path")
	expires, err := strconv.ParseInt(q.Get("expires"), 10, 64)
	// Only the one way to write a number: it is what was signed.
	if err != nil || key == "" || path == "" || strconv.FormatInt(expires, 10) != q.Get("expires") {
		return "", ErrSignature
	}
	if subtle.ConstantTimeCompare([]byte(Signature(key, method, path, expires)), []byte(q.Get("signature"))) != 1 {
		return "", ErrSignature
	}
	if expires != 0 && now.Unix() >= expires {
		return "", ErrExpired
	}
	return path, nil
}
