// Type traits. Metal's have no standard library behind them; those MLX's headers use are here.
#pragma once
#include "language.h"

namespace metal {
template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
template <class T, T v>
struct integral_constant {
  static constexpr constant T value = v;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return v; }
  constexpr T operator()() const { return v; }
};

template <bool B>
using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;
template <class T, class U>
struct is_same : false_type {};
template <class T>
struct is_same<T, T> : true_type {};
template <class T, class U>
constexpr constant bool is_same_v = is_same<T, U>::value;
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};

template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F>
struct conditional {
  typedef T type;
};

template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};

template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;
template <class... B>
struct _disjunction : false_type {};
template <class B0, class... B>
struct _disjunction<B0, B...> : bool_constant<B0::value || _disjunction<B...>::value> {};
template <class T>
struct remove_reference {
  typedef T type;
};

template <class T>
struct remove_reference<thread T&> {
  typedef T type;
};

template <class T>
struct remove_reference<device T&> {
  typedef T type;
};

template <class T>
struct remove_reference<constant T&> {
  typedef T type;
};

template <class T>
struct remove_reference<threadgroup T&> {
  typedef T type;
};

template <class T>
struct remove_reference<T&> {
  typedef T type;
};

template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
struct remove_as {
  typedef T type;
};

template <class T>
struct remove_as<thread T> {
  typedef T type;
};

template <class T>
struct remove_as<device T> {
  typedef T type;
};

template <class T>
struct remove_as<constant T> {
  typedef T type;
};

template <class T>
struct remove_as<threadgroup T> {
  typedef T type;
};

template <class T>
struct remove_const {
  typedef T type;
};

template <class T>
struct remove_const<const T> {
  typedef T type;
};

template <class T>
struct remove_volatile {
  typedef T type;
};

template <class T>
struct remove_volatile<volatile T> {
  typedef T type;
};

template <class T>
using remove_cv_t = typename remove_const<typename remove_volatile<T>::type>::type;
template <class T>
using remove_const_t = typename remove_const<T>::type;
template <class T>
struct remove_cv {
  typedef remove_cv_t<T> type;
};

template <class T>
using remove_addrspace_t = remove_cv_t<typename remove_as<remove_reference_t<T>>::type>;
template <class T>
using decay_t = remove_addrspace_t<T>;
#define MTL_IS(A, ...) metal::_disjunction<__VA_ARGS__>::value
template <class T>
struct is_integral : bool_constant<__is_integral(T)> {};
template <class T>
struct is_floating_point : bool_constant<is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>> {};
template <class T>
struct is_arithmetic : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <class T>
struct is_signed : bool_constant<__is_signed(T) || is_floating_point<T>::value> {};
template <class T>
struct is_unsigned : bool_constant<__is_unsigned(T)> {};
template <class F, class T>
struct is_convertible : bool_constant<__is_convertible(F, T)> {};
template <class T>
constexpr constant bool is_integral_v = is_integral<T>::value;
template <class T>
constexpr constant bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
constexpr constant bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T>
constexpr constant bool is_signed_v = is_signed<T>::value;
template <class T>
constexpr constant bool is_unsigned_v = is_unsigned<T>::value;
template <class F, class T>
constexpr constant bool is_convertible_v = is_convertible<F, T>::value;
template <class T>
T declval();
template <class T>
struct mtl_vt {
  typedef T elem;
  static constexpr constant int n = 1;
};

template <class T, int N>
struct mtl_vt<T __attribute__((ext_vector_type(N)))> {
  typedef T elem;
  static constexpr constant int n = N;
};

template <class T, size_t N>
struct array {
  T e[N];
  thread T& operator[](size_t i) thread { return e[i]; }
  constexpr const thread T& operator[](size_t i) const thread { return e[i]; }
  constexpr const constant T& operator[](size_t i) const constant { return e[i]; }
  constexpr size_t size() const { return N; }
};
}  // namespace metal
