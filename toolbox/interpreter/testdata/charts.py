import datetime
import matplotlib.pyplot as plt

plt.plot([1, 2, 3], [4, 5, float("nan")], label="L"); plt.title("Line"); plt.xlabel("X"); plt.ylabel("Y"); plt.show()
plt.plot([datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)], [1, 2]); plt.title("Dates"); plt.show()
plt.plot(["a", "b"], [1, 2]); plt.title("Names"); plt.yscale("log"); plt.show()
plt.scatter([1, 2], [3, 4]); plt.title("Scatter"); plt.show()
plt.bar(["a", "b"], [3, 7]); plt.title("Bar"); plt.show()
plt.pie([1, 3], labels=["p", "q"], autopct="%d%%"); plt.title("Pie"); plt.show()
plt.boxplot([[1, 2, 3, 4, 50], [2, 3, 4]]); plt.title("Box"); plt.show()
fig, (l, r) = plt.subplots(1, 2); l.plot([1, 2]); r.bar(["x"], [1]); fig.suptitle("Both"); plt.show()
plt.imshow([[1, 2], [3, 4]]); plt.title("Image"); plt.show()
