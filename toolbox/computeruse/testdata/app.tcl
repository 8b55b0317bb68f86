# A program to drive. What happens to it is in the colours of its window, and, a
# line each, in the file that is its argument.
set log [open [lindex $argv 0] a]
fconfigure $log -buffering line -encoding utf-8
proc say {what} { global log; puts $log $what }

wm title . "Ünder test"
wm geometry . 400x300+100+80
canvas .c -width 400 -height 260 -background white -highlightthickness 0
.c create rectangle 20 20 120 120 -fill red -outline {} -tags box
.c create rectangle 200 20 380 240 -fill "#dddddd" -outline {} -tags pad
entry .e -textvariable text
pack .c .e -fill x

.c bind box <ButtonPress-1> { .c itemconfigure box -fill "#00ff00"; say "left" }
.c bind box <Double-ButtonPress-1> { say "double" }
.c bind box <ButtonPress-3> { .c itemconfigure box -fill "#0000ff"; say "right" }
.c bind box <ButtonPress-2> { say "middle" }
.c bind pad <ButtonPress-1> { set from [list %x %y] }
.c bind pad <ButtonRelease-1> { .c create line {*}$from %x %y -fill black -width 9; say "dragged" }
bind . <Button-4> { say "up" }
bind . <Button-5> { say "down" }
bind .e <Return> { say "text $text"; set text "" }
bind .e <Control-Key-k> { say "ctrl+k"; break }
bind .e <Key-F5> { say "f5" }
bind .e <Alt-Key-A> { say "alt+A" }
focus -force .e
update
after idle { say "ready" }
